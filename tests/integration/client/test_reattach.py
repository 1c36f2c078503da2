"""A later process goes on with a run whose own process was killed without a word."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import (
    CellError,
    InvalidInputError,
    RunTakenOverError,
    UnknownOutcomeError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.runs.identity import is_our_session
from airflow_provider_smstudio.studio.runs.worker_loop import WorkerLoop
from tests.helpers.bench import CLASSIC_KERNEL, Bench
from tests.helpers.faults import wait_for
from tests.helpers.workers import (
    COUNTING,
    FIRST,
    Worker,
    assert_counted_once,
    read,
    resume,
    text_of,
)


def test_in_the_middle_of_a_cell(either: Bench, worker: Callable[..., Worker]) -> None:
    path = either.write(FIRST, COUNTING.format(60), "print('three', x)")
    first = worker(either, path)
    first.until("count 10")
    first.kill()
    result = resume(either, path)
    assert (result.status, result.resumed, result.cells_executed) == ("success", True, 3)
    assert either.of_type(ev.Reattached)
    assert_counted_once(either, 60)
    assert text_of(either, 2) == "three 1\n"
    assert result.incomplete_cells == []


def test_after_the_cell_and_others_ended_unseen(either: Bench, worker: Callable[..., Worker]) -> None:
    path = either.write(FIRST, COUNTING.format(20), "print('three', x)")
    first = worker(either, path)
    first.until("count 10")
    first.kill()
    wait_for(lambda: len(read(either, "counted")) == 20)
    assert resume(either, path).status == "success"
    assert_counted_once(either, 20)


def test_before_anything_but_the_start_was_saved(space: Bench, worker: Callable[..., Worker]) -> None:
    path = space.write(*(f"open('counted', 'a').write('{i} ')\nprint('count', {i})" for i in range(5)))
    space.local.switches.save_delay = 2.0
    try:
        first = worker(space, path)
        first.until("cell 4/5 done.*")
        first.kill()
    finally:
        space.local.switches.save_delay = 0.0
    resume(space, path)
    assert read(space, "counted") == ["0", "1", "2", "3", "4"]
    assert [text_of(space, i) for i in range(5)] == [f"count {i}\n" for i in range(5)]


def test_while_the_kernel_starts(either: Bench, worker: Callable[..., Worker]) -> None:
    path = either.write(FIRST, COUNTING.format(3))
    first = worker(either, path)
    first.until("starting kernel.*")
    wait_for(lambda: bool(either.local.sessions()))
    first.kill()
    assert resume(either, path).status == "success"
    assert_counted_once(either, 3)


def test_a_finished_run_is_not_run_again_only_tidied_up(space: Bench, worker: Callable[..., Worker]) -> None:
    path = space.write(FIRST, COUNTING.format(3))
    with space.local.hold("DELETE", "api/") as held:
        first = worker(space, path)
        assert held.wait(30)
        first.kill()
        last = worker(space, path)
        last.until("an earlier try has completed the run")
        last.until("count 2")  # the first one may have been unable to show it
    assert '"cells_executed": 2' in last.finish()
    assert_counted_once(space, 3)


def test_several_deaths(space: Bench, worker: Callable[..., Worker]) -> None:
    path = space.write(FIRST, COUNTING.format(80), "print('three', x)")
    for count in (10, 30, 50):
        one = worker(space, path)
        one.until(f"count {count}")
        one.kill()
    assert "result" in worker(space, path).finish()
    assert_counted_once(space, 80)


def test_what_has_changed_is_never_gone_on_with(space: Bench, worker: Callable[..., Worker]) -> None:
    cells = ("n = 0", FIRST, COUNTING.format(100))
    path = space.write(*cells)
    first = worker(space, path)
    first.until("count 5")
    first.kill()
    space.write(*cells[:2], COUNTING.format(3))
    last = worker(space, path).finish()
    assert "is not resumed: the notebook, its parameters or its kernel have changed since" in last
    assert len(set(read(space, "kernels"))) == 2
    space.assert_clean()


def test_another_runs_session_is_left_alone(space: Bench, worker: Callable[..., Worker]) -> None:
    path = space.write(FIRST, COUNTING.format(100))
    first = worker(space, path)
    first.until("count 5")
    first.kill()
    quick = space.write("1 + 1", name="other.ipynb")
    assert space.run(quick, run_key="another", output_path=f"{space.folder}/other-out.ipynb").resumed is False
    assert len(space.local.sessions()) == 1
    assert space.run(path, run_key=space.folder, resume="never").resumed is False
    assert len(set(read(space, "kernels"))) == 2
    space.assert_clean()


def test_after_a_cells_error_a_retry_starts_afresh(space: Bench) -> None:
    path = space.write(FIRST, "1 / 0")
    for _ in range(2):
        with pytest.raises(CellError):
            resume(space, path, will_retry=True)
        space.assert_clean()
    assert len(set(read(space, "kernels"))) == 2


def test_failed_cell_goes_on_from_there_on_the_same_kernel(either: Bench) -> None:
    failing = "import os\nopen('tries', 'a').write('t ')\nprint('go')\nif not os.path.exists('mended'):\n    1 / x - 1 / 0"
    path = either.write(FIRST, failing, "print('three', x)")
    with pytest.raises(CellError):
        resume(either, path, resume="failed_cell", will_retry=True)
    assert len(either.local.sessions()) == 1
    (either.path / "mended").touch()
    result = resume(either, path, resume="failed_cell", will_retry=False)
    assert (result.resumed, result.cells_executed) == (True, 3)
    assert read(either, "tries") == ["t", "t"]
    assert len(read(either, "kernels")) == 1
    assert [text_of(either, i) for i in range(3)] == ["one\n", "go\n", "three 1\n"]
    either.assert_clean()


def test_the_kernel_is_released_after_the_last_try(space: Bench) -> None:
    path = space.write(FIRST, "1 / 0")
    for will_retry in (True, True, False):
        with pytest.raises(CellError, match="cell 2/2"):
            resume(space, path, resume="failed_cell", will_retry=will_retry)
        assert len(space.local.sessions()) == int(will_retry)
    assert len(read(space, "kernels")) == 1
    space.assert_clean()


def test_a_kernel_that_was_restarted_meanwhile_is_not_gone_on_with(
    space: Bench, worker: Callable[..., Worker]
) -> None:
    path = space.write(FIRST, COUNTING.format(60))
    first = worker(space, path)
    first.until("count 5")
    first.kill()
    (kernel,) = space.local.kernels()
    space.studio.session.request("POST", f"api/kernels/{kernel['id']}/restart")
    (space.path / "counted").unlink()
    result = resume(space, path)
    assert (result.status, result.cells_executed) == ("success", 2)
    assert read(space, "counted") == [str(i) for i in range(60)]
    space.assert_clean()


def test_a_zombie_gives_way(space: Bench, worker: Callable[..., Worker]) -> None:
    """A process that lives on although its task was given up: the later one wins, the earlier one ends."""
    path = space.write(FIRST, COUNTING.format(80), "print('three', x)")
    first = worker(space, path)
    first.until("count 10")
    assert resume(space, path).status == "success"
    said = first.finish()
    assert f"error {RunTakenOverError.__name__}: another process has taken over this run" in said
    assert_counted_once(space, 80)


class TestNoRecord:
    """Kernels other than IPython's."""

    @pytest.fixture(autouse=True)
    def _no_record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow_provider_smstudio.studio.protocol import kernel_record

        monkeypatch.setattr(kernel_record, "supported", lambda info: False)

    def die_at(self, bench: Bench, path: str, at: Callable[[ev.Event], bool], **spec: Any) -> None:
        """Run in this process until something happens, and leave as a dead process does."""
        spec = {"run_key": bench.folder, **spec}

        class DeadError(BaseException):
            pass

        def listener(event: ev.Event) -> None:
            if at(event):
                raise DeadError

        runner = bench.studio.runner(RunSpec(path, **spec), listener=listener)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WorkerLoop, "end_after", lambda loop, run, error: None)  # a dead process does nothing
            patch.setattr(WorkerLoop, "release", lambda loop: loop._kernel.websocket.close())
            with pytest.raises(DeadError):
                runner.run()

    def test_what_the_server_replays_is_enough(self, space: Bench) -> None:
        path = space.write(FIRST, COUNTING.format(20), "print('three', x)")
        self.die_at(space, path, lambda event: isinstance(event, ev.CellOutput) and event.cell.number == 2)
        result = resume(space, path)
        assert read(space, "counted") == [str(i) for i in range(20)]
        assert set(result.incomplete_cells) <= {1, 2}  # what was not saved may be missing, and is marked
        space.assert_clean()

    @pytest.mark.parametrize("choice", ["fail", "rerun"])
    def test_an_answer_that_is_lost_for_good(self, space: Bench, choice: str) -> None:
        space.local.switches.replay = False
        try:
            path = space.write(FIRST, COUNTING.format(5), "print('three', x)")
            self.die_at(space, path, lambda event: isinstance(event, ev.CellOutput) and event.cell.number == 2)
            wait_for(lambda: len(read(space, "counted")) == 5)
            if choice == "fail":
                with pytest.raises(UnknownOutcomeError, match="cell 2/3"):
                    resume(space, path, on_unknown_cell=choice)
                assert len(read(space, "counted")) == 5
            else:
                assert resume(space, path, on_unknown_cell=choice).status == "success"
                assert len(read(space, "counted")) == 10
        finally:
            space.local.switches.replay = True
        space.assert_clean()


class TestAbandonedRuns:
    def test_only_ours_only_old_ones_and_only_those_that_nobody_watches(
        self, either: Bench, worker: Callable[..., Worker]
    ) -> None:
        dead, alive = (
            either.write("1", COUNTING.format(1)),
            either.write("2", COUNTING.format(60), name="b.ipynb"),
        )
        server = either.studio.server
        kernel = CLASSIC_KERNEL if server.classic else "python3"
        theirs = server.start_session(
            {"name": kernel}, f"{either.folder}/person.ipynb", "person.ipynb", timeout=60
        )
        with either.local.hold("DELETE", "api/sessions/") as held:
            killed = worker(either, dead)
            assert held.wait(30)
            killed.kill()
            killed = Worker(either, notebook_path=alive, run_key="alive")
            try:
                killed.until("count 1")
                time.sleep(1.1)  # its session says in whole seconds when it came
                assert either.studio.remove_abandoned_runs(1) == []
                found = either.studio.remove_abandoned_runs(0.5 / 3600, dry_run=True)
                ours = [run.path for run in found]
                assert all(is_our_session(path) for path in ours)
                assert (len(ours) == 1) or server.classic  # which does not tell that somebody watches the other
                assert len(server.sessions()) == 3
            finally:
                killed.kill()
            wait_for(lambda: not either.local.websockets())
            held.release()

        def left() -> list[str]:
            either.studio.remove_abandoned_runs(0.5 / 3600)
            return [item["id"] for item in server.sessions()]

        wait_for(lambda: left() == [theirs["id"]])
        server.delete_session(theirs["id"])

    @pytest.mark.parametrize("hours", [0, -1, True, float("nan"), "24"])
    def test_a_bad_time_is_refused(self, space: Bench, hours: Any) -> None:
        with pytest.raises(InvalidInputError, match="older_than_hours must be a positive number"):
            space.studio.remove_abandoned_runs(hours)
