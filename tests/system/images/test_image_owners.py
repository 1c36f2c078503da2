"""A process that was given up, and lives: it changes nothing of a run that another one goes on with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import RunKilledError, RunTakenOverError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers.bench import Bench
from tests.helpers.faults import wait_for
from tests.helpers.image_bench import kernel_of, papermill, state_of
from tests.helpers.workers import COUNTING, FIRST, Worker, assert_counted_once, read, resume, text_of

pytestmark = pytest.mark.ci

# It stays in the middle of the second cell until it may go on.
CELLS = (
    FIRST,
    COUNTING.format(40) + "    while i == 20 and not os.path.exists('go'):\n        time.sleep(0.05)\n",
    "open('third', 'a').write('3 ')\nprint('three', x)",
)
TAKEN_OVER = f"error {RunTakenOverError.__name__}"


def go(bench: Bench) -> None:
    (bench.path / "go").touch()


def assert_ran_once(bench: Bench) -> None:
    """All is there, as whoever went on with the run has saved it."""
    assert state_of(bench) == "completed"
    assert papermill(bench) == ["completed"] * 3
    assert_counted_once(bench, 40)
    assert read(bench, "third") == ["3"]
    assert text_of(bench, 2) == "three 1\n"


class TestGivenUp:
    def test_it_wakes_after_the_end(self, bench: Bench, worker: Callable[..., Worker]) -> None:
        path = bench.write(*CELLS)
        first = worker(bench, path)
        first.until("count 10")
        first.process.send_signal(signal.SIGSTOP)
        bench.once(ev.Reattached, lambda: go(bench))
        result = resume(bench, path)
        assert (result.status, result.resumed, result.incomplete_cells) == ("success", True, [])
        finished = (bench.local.home / result.output_path).read_bytes()
        first.process.send_signal(signal.SIGCONT)
        said = first.finish()
        assert (bench.local.home / result.output_path).read_bytes() == finished
        assert_ran_once(bench)
        assert TAKEN_OVER in said

    def test_it_ends_while_the_other_runs(self, bench: Bench, worker: Callable[..., Worker]) -> None:
        path = bench.write(*CELLS)
        first = worker(bench, path)
        first.until("count 10")
        second = worker(bench, path)
        second.until("event Reattached")
        second.process.send_signal(signal.SIGSTOP)
        kernel = kernel_of(bench)
        go(bench)
        said = first.finish()
        assert kernel_of(bench) == kernel
        second.process.send_signal(signal.SIGCONT)
        assert '"status": "success"' in second.finish()
        assert_ran_once(bench)
        assert TAKEN_OVER in said

    def test_it_is_stopped_while_the_other_runs(
        self, bench: Bench, worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = bench.write(*CELLS)
        runner = bench.studio.runner(RunSpec(path, run_key=bench.folder, will_retry=True))
        ends: list[object] = []

        def run() -> None:
            try:
                ends.append(runner.run())
            except BaseException as error:
                ends.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        wait_for(lambda: (bench.path / "counted").exists() and len(read(bench, "counted")) >= 10)
        second = worker(bench, path)
        second.until("event Reattached")
        runner.stop("its task was given up")
        thread.join(30)
        go(bench)
        assert '"status": "success"' in second.finish()
        assert_ran_once(bench)
        # A busy server may not say within four seconds whose the run is: then it was killed, and touched nothing.
        unanswered = "the server did not say" in caplog.text
        assert [type(end) for end in ends] in ([RunTakenOverError], [RunKilledError] if unanswered else [])
