"""Runs that a worker has begun, and that others go on with on an event loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunResult, RunSpec
from airflow_provider_smstudio.studio.errors import (
    CellError,
    CellTimeoutError,
    KernelDiedError,
    RunKilledError,
    RunTakenOverError,
    RunTimeoutError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.notebook.spool import NotebookSpool
from airflow_provider_smstudio.studio.protocol import kernel_record
from airflow_provider_smstudio.studio.runs import async_saver, saved_run
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher
from tests.helpers import HELPERS
from tests.helpers.bench import Bench
from tests.helpers.deferred import begin, handed, plain, run_deferred, watch, watching
from tests.helpers.faults import CELLS, EXPECTED, RAN_ONCE, hurry, printed, ran, wait_for

SLEEPS = "open('began', 'w').close()\nimport time\nprint('on', flush=True)\ntime.sleep(60)"


def test_a_short_notebook_is_never_handed_over(either: Bench) -> None:
    begun = begin(either, RunSpec(either.write("print('short')")), either.listen, after=60)
    assert isinstance(begun, RunResult)
    assert begun.cells_executed == 1
    either.assert_clean()


def test_what_is_handed_over_is_small_and_holds_no_parameter(space: Bench) -> None:
    handover = handed(space, "secret = ''", SLEEPS, parameters={"secret": "do-not-tell"}, strict_parameters=False)
    text = json.dumps(handover.as_dict())
    assert len(text) < 2000
    assert "do-not-tell" not in text
    assert [secret for secret in space.local.secrets() if secret in text] == []
    asyncio.run(watching(space, handover, lambda it: it.kill("enough")))
    space.assert_clean()


@pytest.mark.parametrize("after", [0.0, 1.2, 2.0])
def test_nothing_is_lost_or_shown_twice_on_the_way(either: Bench, after: float) -> None:
    lines = "import time\nfor i in range(1500):\n    print(i, flush=True)\n    time.sleep(0.002)"
    either.deferred = True
    result = run_deferred(either, RunSpec(either.write("x = 1", lines, "print(x)")), either.listen, after)
    expected = "".join(f"{i}\n" for i in range(1500))
    assert either.executed(result.output_path).cells[1].outputs[0]["text"] == expected
    shown = "".join(event.output["text"] for event in either.of_type(ev.CellOutput) if event.cell.number == 2)
    assert shown == expected
    assert either.of_type(ev.OutputRecovered) == []
    assert result.cells_executed == 3
    either.assert_clean()


@pytest.mark.parametrize("after", [0.0, 1.2])
@pytest.mark.parametrize("record", [True, False])
def test_nothing_is_lost_on_the_way_where_the_server_replays_nothing(
    local_studio_classic: LocalStudio,
    make_bench: Callable[[LocalStudio], Bench],
    monkeypatch: pytest.MonkeyPatch,
    after: float,
    record: bool,
) -> None:
    """As Studio Classic probably does not: the kernel's record fills the gap; without one, no cell runs meanwhile."""
    bench = make_bench(local_studio_classic)
    monkeypatch.setattr(bench.local.switches, "replay", False)
    if not record:
        monkeypatch.setattr(kernel_record, "supported", lambda info: False)
    lines = "import time\nfor i in range(1000):\n    print(i, flush=True)\n    time.sleep(0.002)"
    result = run_deferred(bench, RunSpec(bench.write("x = 1", lines, "print(x)")), bench.listen, after)
    expected = "".join(f"{i}\n" for i in range(1000))
    assert bench.executed(result.output_path).cells[1].outputs[0]["text"] == expected
    shown = "".join(event.output["text"] for event in bench.of_type(ev.CellOutput) if event.cell.number == 2)
    assert sorted(shown.split()) == sorted(expected.split())  # each once; those of the gap come at the end
    assert bench.of_type(ev.OutputLost) == []
    assert result.cells_executed == 3
    bench.assert_clean()


def test_the_source_may_change_while_the_run_is_deferred(space: Bench) -> None:
    handover = handed(space, "import time; time.sleep(1)", "print('as it was')")
    space.write("print('changed')")
    assert watch(space, handover).cells_executed == 2
    assert space.executed(str(handover.spec.output_path)).cells[1].outputs[0]["text"] == "as it was\n"


def test_a_cells_error_is_the_runs(either: Bench) -> None:
    handover = handed(either, "import time; time.sleep(1)", "1/0", "print('never')")
    with pytest.raises(CellError, match="cell 2/3 raised ZeroDivisionError") as caught:
        watch(either, handover)
    assert caught.value.output_path == handover.spec.output_path
    assert "division" in caught.value.traceback
    either.assert_clean()


def test_a_failing_cell_keeps_its_kernel_for_the_next_try(space: Bench) -> None:
    sources = ("import os", "if not os.path.exists('mended'): 1/0", "print('through')")
    handover = handed(space, "import time; time.sleep(1)", *sources, resume="failed_cell", will_retry=True)
    with pytest.raises(CellError):
        watch(space, handover)
    assert len(space.local.kernels()) == 1
    (space.path / "mended").touch()
    spec = replace(handover.spec, parameters={}, will_retry=False)
    result = space.studio.runner(spec).run()
    assert result.resumed
    assert result.cells_executed == 4
    space.assert_clean()


def test_tolerated_errors_are_known_to_whoever_ends_the_run(space: Bench) -> None:
    handover = handed(space, "1/0", "import time; time.sleep(1)", "1/0", allow_errors=True, after=1.0)
    assert watch(space, handover).failed_cells == [1, 3]


def test_cell_timeout(space: Bench) -> None:
    handover = handed(space, "import time; time.sleep(60)", cell_timeout=2)
    with pytest.raises(CellTimeoutError):
        watch(space, handover)
    space.assert_clean()


def test_the_deadline_stops_the_run(either: Bench) -> None:
    handover = handed(either, SLEEPS)
    wait_for((either.path / "began").exists)
    with pytest.raises(RunTimeoutError, match="execution_timeout"):
        watch(either, handover, deadline=time.time() + 1)
    assert either.executed().cells[0].outputs[0]["text"] == "on\n"
    either.assert_clean()


def test_kill_interrupts_saves_and_removes(either: Bench) -> None:
    handover = handed(either, SLEEPS, "print('never')")

    async def killed(it: NotebookWatcher) -> None:
        task = asyncio.ensure_future(it.watch())
        while not {ev.Reattached, ev.CellOutput} <= set(map(type, either.events)):  # the worker may have heard it
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        began = time.monotonic()
        await it.kill("the task was killed")
        assert time.monotonic() - began < 8

    asyncio.run(watching(either, handover, killed, either.listen))
    notebook = either.executed()
    assert notebook.cells[0].outputs[0]["text"] == "on\n"
    assert notebook.metadata["smstudio"]["run"]["state"] == "killed"
    either.assert_clean()


def test_kill_before_it_was_watched_over(either: Bench) -> None:
    """A trigger that is cancelled as soon as it is started."""
    handover = handed(either, SLEEPS, "print('never')")
    asyncio.run(watching(either, handover, lambda it: it.kill("the task was killed"), either.listen))
    notebook = either.executed()
    assert notebook.metadata["smstudio"]["run"]["state"] == "killed"
    assert [cell.metadata["papermill"]["status"] for cell in notebook.cells] == ["failed", "pending"]
    assert isinstance(saved_run.error_of(notebook), RunKilledError)
    either.assert_clean()


def test_kill_before_it_was_watched_over_keeps_how_it_ended(either: Bench) -> None:
    """A watcher that was lost right after the run had failed may have left the kernel for the next try."""
    handover = handed(either, SLEEPS, "print('never')")
    notebook = either.executed()
    notebook.metadata["smstudio"]["run"]["state"] = "failed"
    assert handover.spec.output_path is not None
    nbformat.write(notebook, either.local.home / handover.spec.output_path)
    asyncio.run(watching(either, handover, lambda it: it.kill("the task was killed"), either.listen))
    assert either.executed().metadata["smstudio"]["run"]["state"] == "failed"
    either.assert_clean()


def test_a_stale_watcher_does_no_harm(either: Bench) -> None:
    """A trigger of an earlier try may be started long after a later one has taken over."""
    handover = handed(either, SLEEPS, "print('mine')")
    wait_for((either.path / "began").exists)
    later = handed(either, SLEEPS, "print('mine')")  # the next try, under the same key
    assert later.owner != handover.owner
    with pytest.raises(RunTakenOverError):
        watch(either, handover)
    with pytest.raises(RunTakenOverError):
        asyncio.run(watching(either, handover, lambda it: it.kill("stale")))
    assert len(either.local.kernels()) == 1
    assert either.local.sessions()[0]["name"].count(later.owner) == 1
    asyncio.run(watching(either, later, lambda it: it.kill("enough")))
    either.assert_clean()


def test_two_watchers_of_one_run(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A triggerer that was given up, and lives: the later watcher wins, the earlier one touches nothing."""
    hurry(monkeypatch)
    handover = handed(space, "import time\nfor i in range(40):\n    print(i, flush=True)\n    time.sleep(0.1)")

    async def both(first: NotebookWatcher) -> None:
        earlier = asyncio.ensure_future(first.watch())
        await asyncio.sleep(1)
        later = NotebookWatcher(first._resources, first._shared, plain(handover))
        result = await later.watch()
        await later.leave()
        assert result.cells_executed == 1
        with pytest.raises(RunTakenOverError):
            await earlier

    asyncio.run(watching(space, handover, both))
    assert space.executed().cells[0].outputs[0]["text"] == "".join(f"{i}\n" for i in range(40))
    space.assert_clean()


def test_the_kernel_is_gone_when_the_watcher_comes(either: Bench) -> None:
    handover = handed(either, SLEEPS)
    either.studio.server.delete_session(handover.session_id)
    with pytest.raises(KernelDiedError, match="is gone"):
        watch(either, handover)
    notebook = either.executed()
    assert notebook.metadata["smstudio"]["run"]["state"] == "failed"
    assert isinstance(saved_run.error_of(notebook), KernelDiedError)


@pytest.mark.parametrize("end", ["success", "error", "killed"])
def test_a_run_that_another_watcher_has_ended(space: Bench, end: str) -> None:
    """A triggerer is lost between the end of the run and its event: the next one tells the same end."""
    handover = handed(space, "import time; time.sleep(1)", "1/0" if end == "error" else "1")
    if end == "success":
        first = watch(space, handover)
        second = watch(space, handover)
        assert second.as_dict() == first.as_dict()
    elif end == "error":
        for _ in range(2):
            with pytest.raises(CellError, match="cell 2/2 raised ZeroDivisionError"):
                watch(space, handover)
    else:
        asyncio.run(watching(space, handover, lambda it: it.kill("enough")))
        with pytest.raises((RunKilledError, KernelDiedError)):
            watch(space, handover)
    space.assert_clean()


def test_outputs_of_ended_cells_leave_memory_and_come_back(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    handover = handed(
        space,
        "import time; time.sleep(1)",
        "print('x' * 500_000)",
        "kernel = get_ipython().kernel\nparent = kernel.get_parent()\nprint('early')",
        "from IPython.display import display, update_display\nh = display('old', display_id='d')",
        "time.sleep(1.5)",
        "update_display('new', display_id='d')\n"
        "late = {'name': 'stdout', 'text': 'late\\n'}\n"
        "_ = kernel.session.send(kernel.iopub_socket, 'stream', late, parent=parent)",
    )
    sizes: list[int] = []

    async def watched(it: NotebookWatcher) -> RunResult:
        def listener(event: ev.Event) -> None:
            if isinstance(event, ev.CellFinished) and event.cell.number == 5:
                assert it._run is not None
                sizes.append(len(json.dumps(it._run.notebook)))

        it._loop._listener = listener
        return await it.watch()

    result = asyncio.run(watching(space, handover, watched))
    assert isinstance(result, RunResult)
    (size,) = sizes
    assert size < 50_000
    cells = space.executed(result.output_path).cells
    assert cells[1].outputs[0]["text"] == "x" * 500_000 + "\n"
    assert cells[2].outputs[0]["text"] == "early\nlate\n"
    assert cells[3].outputs[0]["data"]["text/plain"] == "'new'"
    space.assert_clean()


def test_nothing_is_left_on_the_disk(space: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(async_saver, "NotebookSpool", lambda: NotebookSpool(str(tmp_path)))
    watch(space, handed(space, "import time; time.sleep(1)", "print('x' * 100_000)"))
    assert list(tmp_path.iterdir()) == []


class Process:
    """A triggerer of its own."""

    def __init__(self, bench: Bench, handover: Handover) -> None:
        environment = bench.local.environment
        options = {
            "domain_id": environment["SMSTUDIO_DOMAIN_ID"],
            "user_profile_name": environment["SMSTUDIO_USER_PROFILE_NAME"],
            "space_name": environment.get("SMSTUDIO_SPACE_NAME"),
            "app_type": environment["SMSTUDIO_APP_TYPE"],
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(HELPERS / "watcher_process.py"),
                json.dumps({"options": options, "run": handover.as_dict()}),
            ],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())

    def heard(self, line: str, count: int = 1) -> bool:
        return self.said.count(line) >= count

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def quick(either: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    hurry(monkeypatch)
    return either


@pytest.mark.parametrize("moment", ["before a request", "while it prints", "ended unseen", "while saving"])
def test_a_triggerer_that_is_killed(quick: Bench, moment: str) -> None:
    pause = "import time\ntime.sleep(2)"
    handover = handed(quick, pause, *CELLS)
    first = Process(quick, handover)
    if moment == "before a request":
        wait_for(lambda: first.heard("event CellFinished 1"))
    elif moment == "while saving":
        with quick.local.hold("PUT", "api/contents/") as held:
            assert held.wait(30), "nothing was saved"
            first.kill()
    else:
        wait_for(lambda: first.heard("event CellOutput 3", 3))
        if moment == "ended unseen":
            first.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: "2-end" in (quick.path / "ran").read_text())
    first.kill()
    result = watch(quick, handover, quick.listen)
    assert result.cells_executed == 4
    assert ran(quick) == RAN_ONCE
    assert printed(quick)[1:] == EXPECTED
    quick.assert_clean()
