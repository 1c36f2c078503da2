"""What goes wrong in the fault matrix, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio.execution import autosave
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.jupyter import async_websocket, websocket
from airflow_provider_smstudio.studio.runs import spec
from tests.helpers.bench import Bench

Fault = Callable[[LocalStudio], None]

LINES = 30

CELLS = (
    "x = 1\nopen('ran', 'a').write('1 ')\nprint('one')",
    "import sys, time\n"
    "open('ran', 'a').write('2 ')\n"
    f"for i in range({LINES}):\n"
    "    print('line', i, flush=True)\n"
    "    time.sleep(0.02)\n"
    "open('ran', 'a').write('2-end ')",
    "open('ran', 'a').write('3 ')\nprint('three', x)",
)
EXPECTED = ("one\n", "".join(f"line {i}\n" for i in range(LINES)), "three 1\n")
RAN_ONCE = "1 2 2-end 3 "

MOMENTS = ("before a request", "while it prints", "ended unseen", "while saving")


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Let the client notice within a second what it notices within a quarter of a minute."""
    patch.setattr(websocket, "PING_AFTER", 0.2)
    patch.setattr(websocket, "SILENCE_LIMIT", 1.0)
    patch.setattr(async_websocket, "PING_AFTER", 0.2)
    patch.setattr(async_websocket, "SILENCE_LIMIT", 1.0)
    patch.setattr(autosave, "_SHARE", 0)  # a slow machine must not put the save off that a fault waits for
    quick = RunOptions(
        autosave_interval=0.1, check_interval=1.0, settle_time=1.0, unheard_limit=1.0, heartbeat_interval=1.0
    )

    def options(**given: object) -> RunOptions:
        return replace(quick, **given)  # type: ignore[arg-type]  # passed on as they are

    patch.setattr(spec, "RunOptions", options)


def set_options(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Set some options of all runs, after what else has set some."""
    before = spec.RunOptions  # type: ignore[attr-defined]  # may be replaced already

    def options(**given: Any) -> RunOptions:
        found: RunOptions = before(**{**given, **changes})
        return found

    patch.setattr(spec, "RunOptions", options)


def at(moment: str, bench: Bench, fault: Callable[[], object]) -> Callable[[ev.Event], None]:
    """Return a listener that lets a fault happen once, at a moment of the run.

    The listener is called by the thread that drives the run, so while it waits nobody reads the websocket.
    """
    happened: list[str] = []

    def once() -> None:
        if not happened:
            happened.append(moment)
            fault()

    def while_saving() -> None:
        with bench.local.hold("PUT", "api/contents/") as held:
            assert held.wait(20), "nothing was saved"
            once()

    def listener(event: ev.Event) -> None:
        bench.events.append(event)
        printed = sum(isinstance(seen, ev.CellOutput) and seen.cell.number == 2 for seen in bench.events)
        if isinstance(event, ev.CellFinished) and event.cell.number == 1 and moment == "before a request":
            once()
        elif isinstance(event, ev.CellOutput) and event.cell.number == 2 and printed == 5:
            if moment == "while it prints":
                once()
            elif moment == "ended unseen":
                wait_for(lambda: "2-end" in (bench.path / "ran").read_text())
                once()
            elif moment == "while saving":
                threading.Thread(target=while_saving, daemon=True).start()

    return listener


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ran(bench: Bench) -> str:
    """What the cells have written outside of the kernel."""
    return (bench.path / "ran").read_text()


def printed(bench: Bench) -> tuple[str, ...]:
    """What the executed notebook shows, cell by cell."""
    return tuple(
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in bench.executed().cells
        if cell.cell_type == "code"
    )
