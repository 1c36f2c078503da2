"""A server that keeps nothing while the websocket is away, and does not count websockets: jupyter_server_documents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs.handover import Handover
from tests.helpers.bench import Bench, both_ways
from tests.helpers.deferred import begin, watch, watching
from tests.helpers.faults import hurry, wait_for

PRINTS = (
    "import time\nfor i in range(60):\n    print(i, flush=True)\n    time.sleep(0.05)\nopen('done', 'w').close()\n"
    "time.sleep({})"
)
PRINTED = "".join(f"{i}\n" for i in range(60))


@pytest.fixture
def forgetful(space: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    hurry(monkeypatch)
    kernel = JupyterServer.kernel

    def uncounted(*args: Any, **about: Any) -> dict[str, Any] | None:
        found = kernel(*args, **about)
        return found if found is None else {**found, "connections": 0}

    monkeypatch.setattr(JupyterServer, "kernel", uncounted)
    space.local.switches.replay = False
    yield space
    space.local.switches.replay = True
    space.assert_clean()


def handed(bench: Bench, *cells: str) -> Handover:
    begun = begin(bench, RunSpec(bench.write(*cells)), bench.listen, 1.0)
    assert isinstance(begun, Handover)
    return begun


def test_a_hand_over_knows_that_what_comes_meanwhile_is_lost(forgetful: Bench) -> None:
    handover = handed(forgetful, PRINTS.format(0), "print('two')")
    assert not handover.unbroken
    wait_for((forgetful.path / "done").exists)  # all of the first cell, while nobody listens
    assert watch(forgetful, handover).incomplete_cells == []
    cells = forgetful.executed().cells
    assert [cell.outputs[0]["text"] for cell in cells] == [PRINTED, "two\n"]


def test_a_kill_right_after_the_hand_over_keeps_what_the_cell_has_printed(forgetful: Bench) -> None:
    handover = handed(forgetful, PRINTS.format(60), "print('never')")
    wait_for((forgetful.path / "done").exists)
    asyncio.run(watching(forgetful, handover, lambda it: it.kill("the task was killed")))
    notebook = forgetful.executed()
    assert notebook.cells[0].outputs[0]["text"] == PRINTED
    assert notebook.metadata["smstudio"]["run"]["state"] == "killed"


@both_ways
def test_a_connection_that_is_made_anew_in_order_loses_nothing(forgetful: Bench) -> None:
    forgetful.once(ev.CellOutput, lambda: forgetful.local.cut_websockets("deaf"))
    assert forgetful.run(forgetful.write(PRINTS.format(0), "print('two')")).incomplete_cells == []
    assert [cell.outputs[0]["text"] for cell in forgetful.executed().cells] == [PRINTED, "two\n"]


def test_a_stock_server_is_known_by_its_count_of_websockets(space: Bench) -> None:
    begun = begin(space, RunSpec(space.write("import time; time.sleep(2)")), space.listen, 1.0)
    assert isinstance(begun, Handover)
    assert begun.unbroken
    watch(space, begun)
    space.assert_clean()
