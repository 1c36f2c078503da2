"""Whatever ends a run, at whatever moment: nothing is left that costs money, and its own error gets out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import (
    CellError,
    KernelStartError,
    LoginError,
    RunKilledError,
    ServerError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.runs import spec
from tests.helpers.bench import Bench


def wait_until_clean(bench: Bench, seconds: float = 15) -> None:
    """Wait until what is being removed is gone, and look again a little later: nothing may come back."""
    deadline = time.monotonic() + seconds
    while (bench.local.kernels() or bench.kernel_apps()) and time.monotonic() < deadline:
        time.sleep(0.1)
    bench.assert_clean()
    time.sleep(1)
    bench.assert_clean()


@pytest.fixture
def classic(local_studio_classic: LocalStudio, make_bench: Callable[[LocalStudio], Bench]) -> Iterator[Bench]:
    yield make_bench(local_studio_classic)
    local_studio_classic.switches.kernel_app_delay = 0.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that looks at the server and saves every half second."""
    options = partial(RunOptions, check_interval=0.5, autosave_interval=0.5)
    monkeypatch.setattr(spec, "RunOptions", options)


def once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: BaseException) -> None:
    """Let a method raise the first time."""
    method = getattr(owner, name)
    left = [error]

    def patched(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, patched)


class TestTheStartOfAnApp:
    """Classic answers the request for a kernel when its app is up."""

    def test_stopped_meanwhile(self, classic: Bench) -> None:
        path = classic.write("print(1)")
        classic.local.switches.kernel_app_delay = 4.0
        run = classic.studio.runner(RunSpec(path))
        threading.Timer(1, run.stop, ["the task was killed"]).start()
        began = time.monotonic()
        with pytest.raises(RunKilledError):
            run.run()
        assert time.monotonic() - began < 1 + 5
        wait_until_clean(classic)

    def test_the_process_is_gone_meanwhile(self, classic: Bench) -> None:
        path = classic.write("print(1)")
        classic.local.switches.kernel_app_delay = 4.0
        script = f"""
import os, signal, boto3
from airflow_provider_smstudio.studio import RunSpec, Studio
studio = Studio(boto3.client("sagemaker"), domain_id=os.environ["SMSTUDIO_DOMAIN_ID"],
                user_profile_name=os.environ["SMSTUDIO_USER_PROFILE_NAME"], app_type="JupyterServer")
run = studio.runner(RunSpec({path!r}))
signal.signal(signal.SIGTERM, lambda *_: run.stop("the task was killed"))
print("going", flush=True)
run.run()
"""
        environment = {**os.environ, **classic.local.environment}
        with subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as task:
            assert task.stdout is not None
            assert task.stdout.readline() == "going\n"
            while not classic.kernel_apps():
                time.sleep(0.05)
            time.sleep(0.5)
            task.send_signal(signal.SIGTERM)
            _, errors = task.communicate(timeout=5)  # what Airflow 3 leaves a task
        assert "RunKilledError" in errors
        time.sleep(4)  # the server ends what it began
        wait_until_clean(classic)

    def test_too_slow(self, classic: Bench) -> None:
        path = classic.write("print(1)")
        classic.local.switches.kernel_app_delay = 6.0
        before = len(classic.local.apps())
        began = time.monotonic()
        with pytest.raises(KernelStartError, match="the kernel did not start within 2 s"):
            classic.run(path, kernel_start_timeout=2)
        assert time.monotonic() - began < 2 + 4
        assert len(classic.local.apps()) == before + 1  # it was not started twice
        time.sleep(5)
        wait_until_clean(classic)

    def test_no_session_for_the_kernel(self, classic: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ServerError("no session today", status=500)

        monkeypatch.setattr(classic.studio.server, "start_session", refuse)
        with pytest.raises(KernelStartError, match="was not started: no session today"):
            classic.run(classic.write("print(1)"))
        wait_until_clean(classic)

    def test_an_app_that_vanished_under_the_start_is_started_once_more(
        self, classic: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once(monkeypatch, classic.studio.server, "start_session", ServerError("its app is gone", status=404))
        assert classic.run(classic.write("print(1)")).status == "success"
        wait_until_clean(classic)


class TestTheCleanUp:
    @pytest.mark.parametrize("name", ["delete_session", "delete_kernel"])
    def test_an_exception_in_the_middle_of_it(
        self, either: Bench, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        class TaskEnded(BaseException):
            pass

        once(monkeypatch, either.studio.server, name, TaskEnded())
        with pytest.raises(TaskEnded):
            either.run(either.write("print(1)"))
        wait_until_clean(either)

    def test_an_exception_while_the_app_is_deleted(self, classic: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        once(monkeypatch, classic.studio.server, "delete_app", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            classic.run(classic.write("print(1)"))
        wait_until_clean(classic)

    @pytest.mark.parametrize("error", [ValueError("odd"), LoginError("no login"), ServerError("no", status=500)])
    def test_its_failure_hides_no_error_of_the_run(
        self, either: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda seconds: None)
            patch.setattr(either.studio.server, "delete_session", refuse)
            patch.setattr(either.studio.server, "delete_kernel", refuse)
            with pytest.raises(CellError, match="ZeroDivisionError"):
                either.run(either.write("1/0"))
        assert any("may still run" in record.message for record in caplog.records)
        for session in either.local.sessions():
            either.studio.server.delete_session(session["id"])
        wait_until_clean(either)

    @pytest.mark.parametrize("name", ["delete_session", "delete_kernel"])
    def test_a_server_that_allows_one_way_only(
        self, either: Bench, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """As jupyter_server_documents 0.2 does: each try to remove the session gets HTTP 500."""

        def refuse(*_: object, **__: object) -> None:
            raise ServerError("no room found", status=500)

        monkeypatch.setattr(either.studio.server, name, refuse)
        assert either.run(either.write("print(1)")).status == "success"
        wait_until_clean(either)

    def test_a_kernel_that_is_still_there_is_named(
        self, space: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The server says yes to everything, and removes nothing."""
        server = space.studio.server
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda seconds: None)
            patch.setattr(server, "delete_session", lambda *_, **__: None)
            patch.setattr(server, "delete_kernel", lambda *_, **__: None)
            space.run(space.write("print(1)"))
        (kernel,) = space.local.kernels()
        assert any(
            f"may still run: the server still has kernel {kernel['id']}" in line for line in caplog.messages
        )
        server.delete_kernel(kernel["id"])
        wait_until_clean(space)

    def test_a_cell_that_ignores_the_kill_does_not_keep_the_app(self, classic: Bench) -> None:
        source = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('on', 'w').close()\n"
        run = classic.studio.runner(RunSpec(classic.write(f"{source}time.sleep(60)")))

        def kill() -> None:
            while not (classic.path / "on").exists():
                time.sleep(0.05)
            run.stop("the task was killed")

        threading.Thread(target=kill).start()
        with pytest.raises(RunKilledError):
            run.run()
        wait_until_clean(classic)


class TestTheRun:
    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize(
        "error", [LoginError("throttled"), ServerError("HTML", status=404), ServerError("none", status=None)]
    )
    def test_a_question_that_fails_ends_no_run(
        self, space: Bench, monkeypatch: pytest.MonkeyPatch, error: StudioError
    ) -> None:
        asked: list[int] = []

        def refuse(kernel_id: str) -> None:
            asked.append(1)
            raise error

        monkeypatch.setattr(space.studio.server, "kernel_state", refuse)
        assert space.run(space.write("import time; time.sleep(3)")).status == "success"
        assert asked

    @pytest.mark.usefixtures("quick")
    def test_a_slow_save_keeps_nobody_from_killing(self, space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        write = space.studio.server.write_notebook
        slow = threading.Event()

        def write_slowly(*arguments: Any, **options: Any) -> None:
            if slow.is_set() and threading.current_thread().name == "smstudio-save":
                time.sleep(8)
            write(*arguments, **options)

        monkeypatch.setattr(space.studio.server, "write_notebook", write_slowly)
        run = space.studio.runner(
            RunSpec(space.write("import time\nfor i in range(90): print(i); time.sleep(.3)"))
        )

        def stop() -> None:
            slow.set()
            time.sleep(2)
            stopped.append(time.monotonic())
            run.stop("the task was killed")

        stopped: list[float] = []
        threading.Timer(1.5, stop).start()
        with pytest.raises(RunKilledError):
            run.run()
        assert time.monotonic() - stopped[0] < 5
        space.assert_clean()

    @pytest.mark.parametrize("kind", [ev.CellFinished, ev.Save, ev.Finished])
    def test_an_exception_at_the_very_end_loses_no_output(self, space: Bench, kind: type[ev.Event]) -> None:
        class TaskEnded(BaseException):
            pass

        def listener(event: ev.Event) -> None:
            if isinstance(event, kind) and getattr(event, "required", True):  # not a save on the way
                raise TaskEnded

        with pytest.raises(TaskEnded):
            space.studio.runner(RunSpec(space.write("print('kept')")), listener=listener).run()
        assert space.executed().cells[0].outputs[0]["text"] == "kept\n"
        space.assert_clean()

    def test_a_stop_that_comes_with_the_kernels_first_answer(self, either: Bench) -> None:
        run = either.studio.runner(
            RunSpec(either.write("print(1)")),
            listener=lambda event: run.stop("killed") if isinstance(event, ev.Send) else None,
        )
        with pytest.raises(RunKilledError, match="killed"):
            run.run()
        wait_until_clean(either)

    def test_stopped_before_anything_was_started(self, either: Bench) -> None:
        run = either.studio.runner(RunSpec(either.write("print(1)")))
        run.stop("killed")
        with pytest.raises(RunKilledError, match="before its kernel was started: killed"):
            run.run()
        either.assert_clean()
