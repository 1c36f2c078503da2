"""A process that has to end before its run does: the run is left to the next one, whatever tells the process so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import (
    CellError,
    NotebookNotFoundError,
    RunKilledError,
    RunTakenOverError,
    SaveError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.jupyter import websocket
from airflow_provider_smstudio.studio.jupyter.idle_shutdown import ActivityReporter
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.identity import owner_of
from airflow_provider_smstudio.studio.runs.log import RunLog
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel
from airflow_provider_smstudio.studio.runs.runner import NotebookRunner
from airflow_provider_smstudio.studio.runs.saver import NotebookSaver
from airflow_provider_smstudio.studio.runs.worker_loop import WorkerLoop
from tests.helpers.bench import Bench, both_ways
from tests.helpers.deferred import begin, watch
from tests.helpers.faults import wait_for

CELLS = [
    "import os\n_ = open('kernels', 'a').write(f'{os.getpid()} ')",
    "import time\nfor i in range(8):\n    open('ran', 'a').write(f'{i} ')\n    print(i, flush=True)\n    time.sleep(0.25)",
    "open('ran', 'a').write('end ')\nprint('end')",
]
ONCE = [*map(str, range(8)), "end"]


def read(bench: Bench, name: str) -> list[str]:
    path = bench.path / name
    return path.read_text().split() if path.exists() else []


def assert_ran_once(bench: Bench) -> None:
    assert read(bench, "ran") == ONCE
    assert len(read(bench, "kernels")) == 1
    printed = "".join(output.text for cell in bench.executed().cells for output in cell.get("outputs", []))
    assert printed.split() == ONCE
    bench.assert_clean()


def spec_of(bench: Bench, path: str, **spec: Any) -> RunSpec:
    return RunSpec(path, run_key=bench.folder, **spec)


def runner_of(bench: Bench, spec: RunSpec, *, left: bool = True, **arguments: Any) -> NotebookRunner:
    return bench.studio.runner(spec, listener=bench.listen, leaves_run=lambda: left, **arguments)


def leave_in_first_cell(bench: Bench, spec: RunSpec) -> None:
    """Run a spec in a process that has to end as soon as a cell has been started."""
    first = runner_of(bench, spec)
    bench.once(ev.CellStarted, lambda: first.stop("SIGTERM", for_good=False))
    with pytest.raises(RunTakenOverError):
        first.run()


def the_second_cell_runs(bench: Bench) -> None:
    wait_for(lambda: len(read(bench, "ran")) >= 2)


@both_ways
@pytest.mark.parametrize(
    "error", [BrokenPipeError("no supervisor"), KeyError("a fault"), RuntimeError("x" * 9999)]
)
def test_a_listener_that_fails_is_dropped(
    space: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    told: list[ev.Event] = []

    def listener(event: ev.Event) -> None:
        told.append(event)
        if isinstance(event, ev.CellOutput):
            raise error

    path = space.write(*CELLS)
    with caplog.at_level(logging.WARNING):
        result = space.run_spec(spec_of(space, path), listener)
    assert result.status == "success"
    assert isinstance(told[-1], ev.CellOutput)
    (line,) = [line for line in caplog.messages if "listener" in line]
    assert "gets no more events" in line
    assert type(error).__name__ in line
    assert len(line) < 500
    assert_ran_once(space)


def test_what_is_told_of_the_output_may_fail(space: Bench) -> None:
    def on_output(path: str) -> None:
        raise ConnectionResetError

    path = space.write(*CELLS)
    assert space.studio.runner(spec_of(space, path), on_output=on_output).run().status == "success"
    assert_ran_once(space)


@pytest.mark.parametrize("left", [True, False])
def test_a_process_that_is_stopped(either: Bench, left: bool) -> None:
    path = either.write(*CELLS)
    runner = runner_of(either, spec_of(either, path), left=left)

    def stop() -> None:
        the_second_cell_runs(either)
        runner.stop("SIGTERM", for_good=False)

    either.once(ev.CellStarted, stop)
    with pytest.raises(RunTakenOverError if left else RunKilledError):
        runner.run()
    if left:
        assert either.run(path, run_key=either.folder).resumed
        assert_ran_once(either)
    either.assert_clean()


def test_a_later_try_shows_what_had_run(either: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the earlier process has logged since it lost its supervisor is nowhere else."""
    monkeypatch.setattr(
        "airflow_provider_smstudio.studio.runs.spec.RunOptions", partial(RunOptions, autosave_interval=0)
    )
    tolerated = new_code_cell("raise KeyError('tolerated')", metadata={"tags": ["raises-exception"]})
    running = f"{CELLS[1]}\nimport os\nwhile not os.path.exists('go'): time.sleep(0.05)"
    path = either.write("print('first')\nNone or 'value'", tolerated, running, CELLS[2])

    def stop(event: ev.Event) -> None:
        if isinstance(event, ev.CellOutput) and "5" in event.output.get("text", ""):
            first.stop("SIGTERM", for_good=False)

    first = either.studio.runner(spec_of(either, path), listener=stop, leaves_run=lambda: True)
    with pytest.raises(RunTakenOverError):
        first.run()
    lines: list[str] = []

    def show(level: int, line: str) -> None:
        lines.append(line)
        if line.startswith("reattached"):
            (either.path / "go").touch()

    log = RunLog(show)
    assert either.studio.runner(spec_of(either, path), listener=log).run().resumed
    assert read(either, "ran") == ONCE
    before = lines[: lines.index("reattached: 2 of 4 cells had run")]
    assert [line.partition(" had run in ")[0] for line in before if " had run in " in line] == [
        "cell 1/4",
        "cell 2/4",
    ]
    assert {"first", "'value'", "KeyError: 'tolerated'"} <= set(before)
    assert set(ONCE) <= set(lines)
    either.assert_clean()


@pytest.mark.parametrize("moment", ["announces the notebook", "shows a cell"])
@pytest.mark.parametrize("complete", [False, True])
def test_ended_for_good_while_it_shows_what_had_run(
    space: Bench, monkeypatch: pytest.MonkeyPatch, complete: bool, moment: str
) -> None:
    """As by ``execution_timeout``: the kernel that an earlier try has left goes as well."""
    monkeypatch.setattr(
        "airflow_provider_smstudio.studio.runs.spec.RunOptions", partial(RunOptions, autosave_interval=0)
    )
    path = space.write("print('first')", CELLS[1], CELLS[2])

    def stop(event: ev.Event) -> None:
        if isinstance(event, ev.CellOutput) and "5" in event.output.get("text", ""):
            first.stop("SIGTERM", for_good=False)

    def out_of_time(event: ev.Event) -> None:
        if isinstance(event, ev.CellHadRun):
            raise KeyboardInterrupt

    def announce(path: str) -> None:
        if moment == "announces the notebook":
            raise KeyboardInterrupt

    first = space.studio.runner(spec_of(space, path), listener=stop, leaves_run=lambda: True)
    if complete:
        with monkeypatch.context() as patch:  # lost between its end and its tidying up
            patch.setattr(WorkerLoop, "release", lambda loop: loop._kernel.leave())
            space.run_spec(spec_of(space, path), space.listen)
    else:
        with pytest.raises(RunTakenOverError):
            first.run()
    assert len(space.local.kernels()) == 1
    with pytest.raises(KeyboardInterrupt):
        space.studio.runner(spec_of(space, path, will_retry=False), listener=out_of_time, on_output=announce).run()
    space.assert_clean()


def test_who_stops_it_for_good_is_not_asked_about_it(space: Bench) -> None:
    path = space.write(*CELLS)
    runner = runner_of(space, spec_of(space, path))
    space.once(ev.CellStarted, lambda: runner.stop("enough"))
    with pytest.raises(RunKilledError):
        runner.run()
    space.assert_clean()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(), EOFError(), RuntimeError("a question failed")])
def test_an_error_that_nobody_has_foreseen(
    space: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, left: bool
) -> None:
    path = space.write(*CELLS)
    runner = runner_of(space, spec_of(space, path), left=left)

    def failing(*_: object) -> None:
        if len(read(space, "ran")) >= 2:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(ActivityReporter, "look", failing)
        with pytest.raises(RunTakenOverError if left else type(error)) as caught:
            runner.run()
    if left:
        assert caught.value.__cause__ is error
        assert space.run(path, run_key=space.folder).resumed
        assert_ran_once(space)
    space.assert_clean()


@pytest.mark.parametrize("left", [True, False])
def test_stopped_while_it_reattaches(space: Bench, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """The second try's worker is taken away as well, while it opens the websocket."""
    path = space.write(*CELLS)
    spec = spec_of(space, path)
    leave_in_first_cell(space, spec)

    second = runner_of(space, spec, left=left)
    attach, connect = RemoteKernel.attach, websocket.connect

    def attached(*arguments: Any) -> Any:
        second.stop("SIGTERM", for_good=False)
        return attach(*arguments)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(1)
        return connect(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteKernel, "attach", attached)
        patch.setattr(websocket, "connect", slow)
        with pytest.raises(RunTakenOverError if left else RunKilledError):
            second.run()
    if left:
        assert space.run(path, run_key=space.folder).resumed
        assert_ran_once(space)
    wait_for(lambda: not space.local.kernels())
    space.assert_clean()


def test_stopped_while_the_connection_is_lost(space: Bench) -> None:
    path = space.write(*CELLS)
    runner = runner_of(space, spec_of(space, path))

    def cut_and_stop() -> None:
        the_second_cell_runs(space)
        space.local.cut_websockets()
        runner.stop("SIGTERM", for_good=False)

    space.once(ev.CellStarted, cut_and_stop)
    with pytest.raises(RunTakenOverError):
        runner.run()
    assert space.run(path, run_key=space.folder).resumed
    assert_ran_once(space)


def at_the_end(runner: NotebookRunner, tell: Callable[[ev.Event], None]) -> Callable[[ev.Event], None]:
    """Return a listener that stops a run in the very moment in which its last cell has ended."""

    def listener(event: ev.Event) -> None:
        tell(event)
        if isinstance(event, ev.CellFinished) and event.cell.number == event.total:
            runner.stop("SIGTERM", for_good=False)

    return listener


@pytest.mark.parametrize("saves", [True, False])
def test_stopped_when_its_last_cell_has_ended(space: Bench, monkeypatch: pytest.MonkeyPatch, saves: bool) -> None:
    """That it is complete is saved before the kernel is removed; where that fails, the kernel stays."""
    path = space.write(*CELLS)
    spec = spec_of(space, path, will_retry=True, retry_series="a", try_number=1)
    runner = runner_of(space, spec)
    runner._listener = at_the_end(runner, space.listen)  # type: ignore[assignment]
    if saves:
        assert runner.run().status == "success"
        assert space.executed().metadata["smstudio"]["run"]["state"] == "completed"
    else:

        def fail(*_: Any, **__: Any) -> str:
            raise SaveError("no answer", status=None)

        with monkeypatch.context() as patch:
            patch.setattr(runner._server, "write_notebook", wrap_last(runner, fail))
            with pytest.raises(SaveError):
                runner.run()
        assert len(space.local.kernels()) == 1
    again = space.run(path, run_key=space.folder, retry_series="a", try_number=2)
    assert again.resumed
    assert_ran_once(space)


def wrap_last(runner: NotebookRunner, fail: Callable[..., str]) -> Callable[..., str]:
    """Let saves go through until the run was stopped."""
    write = runner._server.write_notebook

    def writing(*arguments: Any, **options: Any) -> str:
        return fail() if runner._ending.reason else str(write(*arguments, **options))

    return writing


class TestEndedUntold:
    """A notebook that was run to its end by a try that was lost before it could say so."""

    @both_ways
    def test_a_later_try_tells_it(self, space: Bench, caplog: pytest.LogCaptureFixture) -> None:
        path = space.write(*CELLS)
        spec = spec_of(space, path, retry_series="a", try_number=1)
        first = space.run_spec(spec, space.listen)
        starts: list[str] = []
        space.local.on_request(lambda method, url: starts.append(url) if method == "POST" else None)
        with caplog.at_level(logging.WARNING):
            lines: list[str] = []
            log = RunLog(lambda level, line: lines.append(line))
            second = space.studio.runner(replace(spec, try_number=2), listener=log).run()
        assert second.resumed
        # The earlier process may have been unable to log as well.
        assert [line for line in lines if line in ONCE] == ONCE
        assert not second.skipped
        assert (second.status, second.cells_executed) == (first.status, first.cells_executed)
        assert [url for url in starts if "/sessions" in url or "/kernels" in url] == []
        assert any("nothing is run" in line for line in caplog.messages)
        assert_ran_once(space)

    @pytest.mark.parametrize(
        "changes",
        [
            {"retry_series": "b", "try_number": 2},
            {"retry_series": None, "try_number": 2},
            {"try_number": 1},
            {"try_number": 2, "retries": 3},
            {"try_number": 2, "resume": "never"},
            {"try_number": 2, "run_key": "another"},
            {"try_number": 2, "parameters": {"x": 1}, "strict_parameters": False},
        ],
        ids=str,
    )
    def test_else_it_is_run_again(self, space: Bench, changes: dict[str, Any]) -> None:
        path = space.write("_ = open('ran', 'a').write('x')")
        spec = spec_of(space, path, retry_series="a", try_number=1)
        space.studio.runner(spec).run()
        assert not space.studio.runner(replace(spec, **changes)).run().resumed
        assert read(space, "ran") == ["xx"]
        space.assert_clean()

    def test_nor_is_one_that_has_failed(self, space: Bench) -> None:
        path = space.write("open('ran', 'a').write('x')\n1/0")
        for number in (1, 2):
            with pytest.raises(CellError):
                space.run(path, run_key=space.folder, retry_series="a", try_number=number)
        assert read(space, "ran") == ["xx"]
        space.assert_clean()

    def test_a_hand_over_of_another_version(self, space: Bench) -> None:
        """It lies in the database while the package is brought up to date, or back."""
        handover = begin(space, spec_of(space, space.write(*CELLS)), space.listen)
        assert isinstance(handover, Handover)
        plain = handover.as_dict()
        del plain["spec"]["retry_series"], plain["spec"]["try_number"], plain["spec"]["retries"]
        plain["newer"] = plain["spec"]["newer"] = 1  # and of a version to come
        assert watch(space, Handover.from_dict(plain)).status == "success"
        assert_ran_once(space)


@pytest.mark.parametrize("follows", [True, False])
def test_who_knows_that_no_try_follows_keeps_no_kernel(space: Bench, follows: bool) -> None:
    told: list[StudioError] = []

    def try_follows(error: StudioError) -> bool:
        told.append(error)
        return follows

    path = space.write("x = 1", "x / 0")
    spec = spec_of(space, path, resume="failed_cell", will_retry=True)
    with pytest.raises(CellError):
        space.studio.runner(spec, try_follows=try_follows).run()
    assert [type(error) for error in told] == [CellError]
    assert len(space.local.kernels()) == int(follows)
    space.studio.remove_run(spec)
    space.assert_clean()


def test_what_was_kept_for_a_next_try_is_removed_with_its_app(either: Bench) -> None:
    spec = spec_of(either, either.write("1/0"), resume="failed_cell", will_retry=True)
    with pytest.raises(CellError):
        either.studio.runner(spec).run()
    assert bool(either.kernel_apps()) is either.studio.server.classic
    assert len(either.local.kernels()) == 1
    either.studio.remove_run(spec)
    either.assert_clean()


def test_a_last_try_that_comes_to_nothing_takes_along_what_an_earlier_one_has_left(either: Bench) -> None:
    path = either.write(*CELLS)
    spec = spec_of(either, path, will_retry=True)
    leave_in_first_cell(either, spec)
    (either.path / "work.ipynb").rename(either.path / "away.ipynb")
    for follows in (True, False):
        assert len(either.local.kernels()) == 1
        with pytest.raises(NotebookNotFoundError):
            either.studio.runner(replace(spec, will_retry=follows)).run()
    either.assert_clean()


@pytest.mark.parametrize("left", [True, False])
def test_a_second_signal_before_it_is_decided(space: Bench, left: bool) -> None:
    """Airflow 2.11 raises in its handler, whatever the process is at."""

    class SecondSignal(BaseException):
        pass

    asked: list[int] = []

    def leaves_run() -> bool:
        asked.append(1)
        if len(asked) == 1:
            raise SecondSignal
        return left

    path = space.write(*CELLS)
    runner = space.studio.runner(spec_of(space, path), listener=space.listen, leaves_run=leaves_run)
    space.once(ev.CellStarted, lambda: runner.stop("SIGTERM", for_good=False))
    with pytest.raises(SecondSignal):
        runner.run()
    assert len(space.local.kernels()) == int(left)
    if left:
        assert space.run(path, run_key=space.folder).resumed
        assert_ran_once(space)
    space.assert_clean()


@pytest.mark.parametrize("left", [True, False])
def test_a_failed_cell_keeps_its_kernel_when_the_process_ends_just_then(
    space: Bench, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    path = space.write("open('ran', 'a').write('a ')", "open('ran', 'a').write('b ')\nopen('there')")
    spec = spec_of(space, path, resume="failed_cell", will_retry=True)
    runner = runner_of(space, spec, left=left)
    save = NotebookSaver.save_last

    def stopped(*arguments: Any, **options: Any) -> None:
        runner.stop("SIGTERM", for_good=False)
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NotebookSaver, "save_last", stopped)
        with pytest.raises(CellError):
            runner.run()
    assert len(space.local.kernels()) == int(left)
    (space.path / "there").touch()
    assert space.run(path, run_key=space.folder, resume="failed_cell").resumed is left
    assert read(space, "ran") == (["a", "b", "b"] if left else ["a", "b", "a", "b"])
    space.assert_clean()


def test_a_run_that_no_later_try_wants_is_not_left(space: Bench) -> None:
    path = space.write(*CELLS)
    runner = runner_of(space, spec_of(space, path, resume="never"))
    space.once(ev.CellStarted, lambda: runner.stop("SIGTERM", for_good=False))
    with pytest.raises(RunKilledError):
        runner.run()
    space.assert_clean()


def test_an_earlier_process_ends_the_run_while_a_later_one_reattaches(
    space: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen worker is continued just then; what it has completed is neither overwritten nor run again."""
    path = space.write(*CELLS)
    spec = spec_of(space, path)
    leave_in_first_cell(space, spec)
    attach = RemoteKernel.attach

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(RemoteKernel, "attach", attach)
        # Under the name that the session has, as a process does that never knew of another one.
        continued = runner_of(space, spec)
        (session,) = space.studio.server.sessions()
        continued._owner = owner_of(session["name"])[0] or ""
        continued._kernel.ownership._owner = continued._owner
        assert continued.run().status == "success"
        return attach(*arguments)

    monkeypatch.setattr(RemoteKernel, "attach", late)
    result = runner_of(space, spec).run()
    assert (result.status, result.resumed) == ("success", True)
    assert space.executed().metadata["smstudio"]["run"]["state"] == "completed"
    assert_ran_once(space)
