"""A process that was given up and does not know it: it changes nothing of a run that is another one's now."""

from __future__ import annotations

import asyncio
import threading

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import RunTakenOverError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher
from tests.helpers.bench import Bench, both_ways
from tests.helpers.deferred import begin, watching
from tests.helpers.faults import wait_for


@both_ways
@pytest.mark.parametrize("how", ["killed", "too long"])
def test_a_process_that_was_given_up_interrupts_and_removes_nothing(space: Bench, how: str) -> None:
    """Its server does not tell it: as jupyter_server_documents, which lets both websockets live."""
    path = space.write("import time\nopen('began', 'w').close()\ntime.sleep(4)\nopen('through', 'w').close()")
    if space.deferred:
        run_deferred_and_given_up(space, path, how)
    else:
        run = space.studio.runner(RunSpec(path, cell_timeout=1.5 if how == "too long" else None))

        def give_up() -> None:
            wait_for((space.path / "began").exists)
            rename_for_another(space)
            if how == "killed":
                run.stop("the task was killed")

        threading.Thread(target=give_up).start()
        with pytest.raises(RunTakenOverError):
            run.run()
    (kernel,) = space.local.kernels()
    wait_for((space.path / "through").exists)  # nobody has interrupted it
    assert space.executed().metadata["smstudio"]["run"]["state"] == "running"
    space.studio.server.delete_kernel(kernel["id"])
    space.assert_clean()


def rename_for_another(bench: Bench) -> None:
    (session,) = bench.studio.server.sessions()
    bench.studio.server.rename_session(session["id"], "run [smstudio 0123456789ab since 1]")


def run_deferred_and_given_up(bench: Bench, path: str, how: str) -> None:
    timeout = 1.5 if how == "too long" else None
    handover = begin(bench, RunSpec(path, cell_timeout=timeout), bench.listen)
    assert isinstance(handover, Handover)

    async def given_up(it: NotebookWatcher) -> None:
        task = asyncio.ensure_future(it.watch())
        while not bench.of_type(ev.Reattached) or not (bench.path / "began").exists():
            await asyncio.sleep(0.05)
        await asyncio.to_thread(rename_for_another, bench)
        if how == "killed":
            task.cancel()
            await asyncio.wait([task])
            await it.kill("the task was killed")
        else:
            await task

    with pytest.raises(RunTakenOverError):
        asyncio.run(watching(bench, handover, given_up, bench.listen))
