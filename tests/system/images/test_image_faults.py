"""What goes wrong under a run on an image's own server: connections, kernels and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import KernelDiedError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers.bench import Bench
from tests.helpers.faults import CELLS, EXPECTED, RAN_ONCE, at, printed, ran, wait_for
from tests.helpers.image_bench import CRASH_LIMIT, kernel_of, papermill, state_of, stays, when_begun
from tests.helpers.workers import COUNTING, FIRST, Worker, assert_counted_once, read, resume, text_of


@pytest.mark.ci
class TestKilledWorker:
    def test_the_next_try_goes_on(self, bench: Bench, worker: Callable[..., Worker]) -> None:
        path = bench.write(FIRST, COUNTING.format(60), "print('three', x)")
        first = worker(bench, path)
        first.until("count 10")
        first.kill()
        result = resume(bench, path)
        assert (result.status, result.resumed, result.cells_executed) == ("success", True, 3)
        assert result.incomplete_cells == []
        assert bench.of_type(ev.Reattached)
        assert_counted_once(bench, 60)
        assert text_of(bench, 2) == "three 1\n"

    def test_the_cell_had_ended_meanwhile(self, bench: Bench, worker: Callable[..., Worker]) -> None:
        path = bench.write(FIRST, COUNTING.format(20), "print('three', x)")
        first = worker(bench, path)
        first.until("count 10")
        first.kill()
        wait_for(lambda: len(read(bench, "counted")) == 20)
        time.sleep(0.5)  # the cell's end is sent
        assert resume(bench, path).incomplete_cells == []
        assert_counted_once(bench, 20)
        assert text_of(bench, 2) == "three 1\n"


class TestCutWebsocket:
    @pytest.mark.ci
    @pytest.mark.parametrize("how", ["reset", "close", "half-open"])
    def test_while_it_prints(self, impatient: Bench, how: str) -> None:
        cut = at("while it prints", impatient, lambda: impatient.local.cut_websockets(how))
        self.run(impatient, cut)

    @pytest.mark.parametrize("how", ["reset", "half-open"])
    def test_the_cell_ends_unseen(self, impatient: Bench, how: str) -> None:
        cut = at("ended unseen", impatient, lambda: impatient.local.cut_websockets(how))
        self.run(impatient, cut)

    @pytest.mark.ci
    def test_away_until_the_cell_has_ended(self, impatient: Bench) -> None:
        switches = impatient.local.switches

        def leave() -> None:
            switches.refuse_connections = True
            threading.Timer(8, setattr, (switches, "refuse_connections", False)).start()
            impatient.local.cut_websockets("reset")

        self.run(impatient, at("while it prints", impatient, leave))

    def run(self, bench: Bench, listener: Callable[[ev.Event], None]) -> None:
        bench.run_spec(RunSpec(bench.write(*CELLS)), listener)
        assert ran(bench) == RAN_ONCE
        assert printed(bench) == EXPECTED
        assert bench.of_type(ev.OutputLost) == []


@pytest.mark.ci
class TestCrash:
    """A kernel that dies in the midst of a cell that says nothing."""

    @pytest.mark.parametrize("way", ["killed from outside", "killed by itself", "exits"])
    def test_is_noticed(self, impatient: Bench, way: str) -> None:
        last = {
            "killed from outside": "",
            "killed by itself": "os.kill(os.getpid(), 9)",
            "exits": "os._exit(1)",
        }[way]
        path = impatient.write("print('one')", stays(3 if last else 300, last), "print('never')")
        kill = (lambda: impatient.local.kill_kernel(kernel_of(impatient))) if not last else (lambda: None)
        died = when_begun(impatient, kill, after=3)
        with pytest.raises(KernelDiedError, match="cell 2/3") as caught:
            impatient.run(path)
        assert time.monotonic() - died[0] < CRASH_LIMIT
        assert caught.value.cell_number == 2
        assert [text_of(impatient, i) for i in range(3)] == ["one\n", "on\n", ""]
        assert papermill(impatient) == ["completed", "failed", "pending"]
        assert state_of(impatient) == "failed"


@pytest.mark.ci
class TestPersonRestarts:
    def test_in_the_midst_of_a_cell(self, impatient: Bench) -> None:
        path = impatient.write("print('one')", stays(300), "print('never')")

        def restart() -> None:
            kernel = kernel_of(impatient)
            impatient.studio.session.request("POST", f"api/kernels/{kernel}/restart")

        asked = when_begun(impatient, restart)
        with pytest.raises(KernelDiedError, match="cell 2/3"):
            impatient.run(path)
        assert time.monotonic() - asked[0] < CRASH_LIMIT
        assert [text_of(impatient, i) for i in range(3)] == ["one\n", "on\n", ""]
        assert state_of(impatient) == "failed"
