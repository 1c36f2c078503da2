"""A server that does not notice that a kernel has crashed, as jupyter_server_documents 0.2 does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import KernelDiedError, RunKilledError, ServerError
from airflow_provider_smstudio.studio.jupyter import kernel_probe
from airflow_provider_smstudio.studio.jupyter.kernel_probe import SecondKernel, notes_activity
from tests.helpers.bench import Bench, both_ways
from tests.helpers.faults import hurry, set_options

CRASHES = "import os, signal, time\nprint('on', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), signal.SIGKILL)"
# It holds Python's lock, so that no thread of the kernel can answer.
HOLDS = "import ctypes\nopen('began', 'w').close()\nctypes.PyDLL(None).sleep({})\nprint('done')"


@pytest.fixture(scope="module")
def unnoticing() -> Iterator[LocalStudio]:
    """Its server starts no kernel again, and says `busy` of one that is gone."""
    with LocalStudio(server_args=["--KernelManager.autorestart=False"]) as local:
        yield local


@pytest.fixture
def bench(
    unnoticing: LocalStudio,
    make_bench: Callable[[LocalStudio], Bench],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Bench]:
    hurry(monkeypatch)
    look_after(monkeypatch, 2.0)
    caplog.set_level("INFO")
    bench = make_bench(unnoticing)
    yield bench
    bench.assert_clean()


def look_after(patch: pytest.MonkeyPatch, seconds: float) -> None:
    set_options(patch, crash_check_after=seconds)


@both_ways
def test_it_is_noticed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with pytest.raises(KernelDiedError, match="the Jupyter server did not notice: its process is gone"):
        bench.run(bench.write("x = 1", CRASHES, "print('never')"))
    assert time.monotonic() - began < 60  # this server lets a websocket to a dead kernel wait for 20 s
    saved = bench.executed()
    assert saved.cells[1].outputs[0]["text"] == "on\n"
    assert saved.metadata["smstudio"]["run"]["state"] == "failed"
    assert "checking whether its process still exists" in caplog.text


@both_ways
def test_a_kernel_that_is_only_busy_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert bench.run(bench.write(HOLDS.format(9))).status == "success"
    assert bench.executed().cells[0].outputs[0]["text"] == "done\n"
    assert "the kernel's process still exists: it is busy, and the run continues" in caplog.text
    assert "is gone" not in caplog.text


@both_ways
def test_where_nothing_can_look_the_run_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> str:
        raise ServerError("no kernel today", status=503)

    monkeypatch.setattr(kernel_probe, "_python_kernel", refuse)
    assert bench.run(bench.write(HOLDS.format(6))).status == "success"
    assert "could not check whether the kernel's process exists: no kernel today; the run continues" in caplog.text


@both_ways
def test_a_second_kernel_that_does_not_answer_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen with jupyter_server_documents 0.2, about once in 200 starts of a kernel."""
    ask, kernels = SecondKernel.ask, []

    def mute_at_first(second: SecondKernel, code: str, **limit: float) -> str:
        kernels.append(second.kernel_id)
        return ask(second, code if len(kernels) > 1 else "import time; time.sleep(30)", **limit)

    monkeypatch.setattr(SecondKernel, "ask", mute_at_first)
    monkeypatch.setattr(kernel_probe, "_MUTE_LIMIT", 1.0)
    with pytest.raises(KernelDiedError, match="its process is gone"):
        bench.run(bench.write(CRASHES))
    assert len(set(kernels)) == len(kernels) == 2
    assert "a second kernel did not answer within 1 s: another one is started" in caplog.text


def test_a_kill_in_the_middle_of_a_look_leaves_no_second_kernel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = SecondKernel.ask, threading.Event()

    def slowly(second: SecondKernel, code: str, *, limit: float) -> str:
        asked.set()
        return ask(second, "import time; time.sleep(30)")

    monkeypatch.setattr(SecondKernel, "ask", slowly)
    run = bench.studio.runner(RunSpec(bench.write(HOLDS.format(10))))

    def kill() -> None:
        assert asked.wait(30)
        run.stop("the task was killed")

    threading.Thread(target=kill).start()
    with pytest.raises(RunKilledError):
        run.run()
    bench.assert_clean()


def test_a_look_that_a_lost_process_has_left_is_removed_by_the_next_try(bench: Bench) -> None:
    path = bench.write("print(1)")
    spec = RunSpec(path, run_key=bench.folder)
    runner = bench.studio.runner(spec)
    left = SecondKernel(bench.studio.server, runner._who.probe_path(path))
    left.__enter__()
    assert left._websocket is not None
    left._websocket.close()
    assert len(bench.local.sessions()) == 1
    assert runner.run().status == "success"
    bench.assert_clean()


def test_a_stock_server_notes_activity(space: Bench) -> None:
    assert notes_activity(space.studio.server, "smstudio-probe") is True
    space.assert_clean()


def test_a_server_that_notes_no_activity(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = space.studio.server.kernel

    def frozen(*args: Any, **about: Any) -> dict[str, Any] | None:
        found = kernel(*args, **about)
        return found if found is None else {**found, "last_activity": "2026-11-27T14:18:14.673250Z"}

    monkeypatch.setattr(space.studio.server, "kernel", frozen)
    assert notes_activity(space.studio.server, "smstudio-probe") is False
    space.assert_clean()
