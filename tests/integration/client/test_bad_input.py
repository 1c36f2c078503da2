"""Bad input and bad ends: each a clear error, and nothing left running."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import boto3
import pytest
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import NotebookRunner, RunSpec
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    CellError,
    CellTimeoutError,
    ControlPlaneError,
    InvalidInputError,
    KernelDiedError,
    KernelNotFoundError,
    KernelStartError,
    LoginLinkExpiredError,
    NotANotebookError,
    NotebookNotFoundError,
    OutputPathError,
    ParameterError,
    ResourceNotFoundError,
    RunKilledError,
    StudioError,
)
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers.bench import Bench, both_ways, client_of


class TestWhichStudio:
    """Domain, user profile and space."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"domain_id": "d-nosuchdomain"}, "there is no domain 'd-nosuchdomain' in this AWS account"),
            ({"user_profile_name": "nobody"}, "there is no user profile 'nobody' in domain 'd-localstudio'"),
            ({"space_name": "nowhere"}, "there is no space 'nowhere' in domain 'd-localstudio'"),
        ],
    )
    def test_unknown(self, space: Bench, wrong: dict[str, str], message: str) -> None:
        studio = client_of(space.local, **wrong)
        with pytest.raises(ResourceNotFoundError, match=message):
            studio.runner(RunSpec(space.write("1")))

    def test_unknown_profile_of_classic(self, local_studio_classic: LocalStudio) -> None:
        studio = client_of(local_studio_classic, user_profile_name="nobody")
        with pytest.raises(ResourceNotFoundError, match="there is no user profile 'nobody'"):
            studio.check_ready()

    def test_space_and_app_type_must_fit(self, local_studio: LocalStudio) -> None:
        with pytest.raises(InvalidInputError, match="space_name is missing"):
            client_of(local_studio, space_name=None)
        with pytest.raises(InvalidInputError, match="space_name must be left out"):
            client_of(local_studio, app_type="JupyterServer")
        with pytest.raises(InvalidInputError, match="app_type must be one of"):
            client_of(local_studio, app_type="CodeEditor")

    def test_no_service_at_all(self, space: Bench) -> None:
        client = boto3.client(
            "sagemaker",
            region_name="us-east-1",
            endpoint_url="http://127.0.0.1:9",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )
        studio = client_of(space.local)
        studio.control_plane._client = client
        with pytest.raises(ControlPlaneError, match="DescribeApp failed"):
            studio.check_ready()
        client.close()


@both_ways
class TestApp:
    """The app is not there, or fails."""

    @pytest.fixture
    def bench(self, make_bench: Callable[[LocalStudio], Bench]) -> Iterator[Bench]:
        with LocalStudio(app_status="Missing") as local:
            yield make_bench(local)

    def test_never_started_then_stopped_then_failed(self, bench: Bench) -> None:
        path = bench.write("1")
        with pytest.raises(AppNotReadyError, match="is not running.*SageMakerStudioAppSensor") as caught:
            bench.run(path)
        assert caught.value.status == "NotFound"
        bench.local.start_app()
        bench.run(path)
        bench.local.stop_app()
        with pytest.raises(AppNotReadyError, match="is stopped.*SageMakerStudioAppSensor") as caught:
            bench.run(path)
        assert caught.value.status == "Deleted"
        bench.local.start_app()
        bench.local.fail_app("EC2InsufficientCapacityError: no ml.g5.48xlarge")
        with pytest.raises(AppFailedError, match="has failed: EC2InsufficientCapacityError") as caught_failed:
            bench.run(path)
        assert caught_failed.value.failure_reason == "EC2InsufficientCapacityError: no ml.g5.48xlarge"

    def test_app_stopped_while_a_cell_runs(self, bench: Bench) -> None:
        bench.local.start_app()
        path = bench.write("import time\nprint('on', flush=True)\ntime.sleep(60)")
        bench.once(ev.CellOutput, bench.local.stop_app)
        began = time.monotonic()
        # The last one where it is stopped in the hand-over, so that the triggerer's login is the first to notice.
        known = "the kernel is gone|a user or another program restarted it or shut it down|app is stopped|shows its loading page"
        with pytest.raises(StudioError, match=known):
            bench.run(path)
        assert time.monotonic() - began < 30


@both_ways
class TestLogin:
    """Presigned URLs and what stands in the app's place."""

    def test_an_expired_link_is_told_from_a_missing_app(self, space: Bench) -> None:
        def late(session_seconds: int = 0) -> str:
            url = space.studio.control_plane._client.create_presigned_domain_url(
                DomainId=space.local.domain_id,
                UserProfileName=space.local.user_profile_name,
                SpaceName=space.local.space_name,
                ExpiresInSeconds=5,
            )["AuthorizedUrl"]
            time.sleep(5.5)
            return str(url)

        space.studio.control_plane.presigned_url = late  # type: ignore[method-assign]
        with pytest.raises(LoginLinkExpiredError, match="did not accept the presigned URL") as caught:
            space.run(space.write("1"))
        assert "token" not in str(caught.value)

    @pytest.mark.parametrize("answer", ["403", "302", "200-html"])
    def test_a_login_that_ended_is_renewed(
        self, either: Bench, answer: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        either.local.switches.unauthenticated = answer
        caplog.set_level("INFO")
        path = either.write("import time\ntime.sleep(1.5)", "print('still here')")
        either.once(ev.CellStarted, either.local.expire_logins)
        logins = either.studio.session.logins
        try:
            result = either.run(path)
        finally:
            either.local.switches.unauthenticated = "403"
        assert either.executed(result.output_path).cells[1].outputs[0]["text"] == "still here\n"
        assert either.studio.session.logins == logins + 2
        assert sum("the Studio login has ended" in record.message for record in caplog.records) == 1
        either.assert_clean()

    def test_http_is_used_on_this_machine_only(self, space: Bench) -> None:
        plain = "http://abc.studio.us-east-1.sagemaker.aws/auth?token=secret"
        space.studio.control_plane.presigned_url = lambda session_seconds=0: plain  # type: ignore[method-assign]
        with pytest.raises(Exception, match="not https") as caught:
            space.studio.session.renew()
        assert "secret" not in repr(caught.value)


@both_ways
class TestNotebook:
    def test_missing(self, either: Bench) -> None:
        either.write("1", name="there.ipynb")
        with pytest.raises(NotebookNotFoundError, match="no notebook 'their.ipynb' in the folder.*'there.ipynb'"):
            either.run(f"{either.folder}/their.ipynb")
        with pytest.raises(NotebookNotFoundError, match="the folder 'no/such' does not exist"):
            either.run("no/such/a.ipynb")

    def test_a_folder(self, either: Bench) -> None:
        (either.path / "folder").mkdir(parents=True)
        with pytest.raises(NotANotebookError, match="is a directory, not a notebook"):
            either.run(f"{either.folder}/folder")

    def test_another_file(self, either: Bench) -> None:
        either.path.mkdir()
        (either.path / "a.txt").write_text("{}")
        with pytest.raises(NotANotebookError, match="is a file, not a notebook"):
            either.run(f"{either.folder}/a.txt")

    @pytest.mark.parametrize("text", ["{broken", "[]", '{"a": 1}', "", '{"nbformat": 9, "nbformat_minor": 0}'])
    def test_invalid(self, either: Bench, text: str) -> None:
        either.path.mkdir()
        (either.path / "bad.ipynb").write_text(text)
        with pytest.raises(NotANotebookError, match="bad.ipynb' is not a valid notebook"):
            either.run(f"{either.folder}/bad.ipynb")

    @pytest.mark.parametrize("path", ["", "/", "../out.ipynb", "a/../../b.ipynb", "a\\b.ipynb"])
    def test_paths_outside_the_home(self, space: Bench, path: str) -> None:
        with pytest.raises(InvalidInputError, match="must be a path below the Studio home"):
            space.run(path)

    def test_upload_from_nowhere(self, space: Bench, tmp_path) -> None:
        with pytest.raises(NotebookNotFoundError, match="could not be read on this worker: No such file"):
            space.run(f"{space.folder}/a.ipynb", upload_from=str(tmp_path / "none.ipynb"))
        (tmp_path / "bad.ipynb").write_text("{broken")
        with pytest.raises(NotANotebookError, match="is not a valid notebook"):
            space.run(f"{space.folder}/a.ipynb", upload_from=str(tmp_path / "bad.ipynb"))
        with pytest.raises(InvalidInputError, match="s3://bucket/key"):
            space.run(f"{space.folder}/a.ipynb", upload_from="s3://bucket")


@both_ways
class TestKernelChoice:
    def test_unknown_kernel_lists_what_there_is(self, either: Bench) -> None:
        with pytest.raises(KernelNotFoundError, match="there is no kernel 'julia'.*python3") as caught:
            either.run(either.write("1"), kernel_name="julia")
        assert caught.value.available
        either.assert_clean()


@both_ways
class TestParameters:
    @pytest.mark.parametrize("name", ["class", "a b", "1a", "", "a;import os", "a=1\nb"])
    def test_bad_name(self, space: Bench, name: str) -> None:
        with pytest.raises(ParameterError, match="cannot be a parameter's name"):
            space.run(space.write("1"), parameters={name: 1})

    def test_value_without_a_literal(self, space: Bench) -> None:
        with pytest.raises(ParameterError, match="parameter 'a' cannot be written in Python: a value of type"):
            space.run(space.write("1"), parameters={"a": object()})

    def test_unknown_parameter(self, space: Bench) -> None:
        path = space.write(new_code_cell("amount = 1", metadata={"tags": ["parameters"]}), "print(amount)")
        with pytest.raises(ParameterError, match="unknown parameter 'amuont'.*assigns amount"):
            space.run(path, parameters={"amuont": 2})
        assert space.run(path, parameters={"amuont": 2}, strict_parameters=False).status == "success"

    def test_not_a_dict(self, space: Bench) -> None:
        with pytest.raises(InvalidInputError, match="parameters must be a dict"):
            space.run(space.write("1"), parameters=["a"])

    def test_other_language(self, space: Bench) -> None:
        path = space.write("1", kernelspec={"name": "python3", "display_name": "x", "language": "julia"})
        space.local.home  # noqa: B018
        assert space.run(path, parameters={"a": 1}).status == "success"  # the server's kernelspec decides

    def test_a_cell_too_large_for_the_server(self, space: Bench) -> None:
        with pytest.raises(InvalidInputError, match="cell 1 has 11 MiB of source"):
            space.run(space.write("1"), parameters={"a": "x" * (11 * 2**20)})


@both_ways
class TestOutputPath:
    def test_missing_folder(self, either: Bench) -> None:
        path = either.write("print(1)")
        out = f"{either.folder}/no/such/out.ipynb"
        with pytest.raises(OutputPathError, match="the folder .*no/such' of output_path does not exist"):
            either.run(path, output_path=out)
        assert not (either.path / "no").exists()
        assert either.run(path, output_path=out, create_output_folder=True).output_path == out

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("work.ipynb", "source is never overwritten"),
            ("out.txt", "must end in .ipynb"),
            ("dir.ipynb", "is a folder"),
        ],
    )
    def test_refused(self, space: Bench, name: str, message: str) -> None:
        path = space.write("1")
        (space.path / "dir.ipynb").mkdir()
        with pytest.raises(OutputPathError, match=message):
            space.run(path, output_path=f"{space.folder}/{name}")

    def test_a_folder_that_cannot_be_made(self, space: Bench) -> None:
        path = space.write("1")
        (space.path / "file").write_text("")
        with pytest.raises(OutputPathError, match="is a file, so no folder can be made"):
            space.run(path, output_path=f"{space.folder}/file/out.ipynb", create_output_folder=True)


@both_ways
class TestCells:
    @pytest.mark.parametrize("name", ["cell_timeout", "kernel_start_timeout"])
    @pytest.mark.parametrize("value", [0, -1, "5", True, float("nan")])
    def test_bad_limits(self, space: Bench, name: str, value: object) -> None:
        with pytest.raises(InvalidInputError, match=f"{name} must be a positive number"):
            space.run(space.write("1"), **{name: value})

    @pytest.mark.parametrize("value", [-1, "5", True, None, float("nan"), float("inf")])
    def test_a_bad_size_of_the_record(self, space: Bench, value: object) -> None:
        with pytest.raises(InvalidInputError, match="record_mib must be a number of MiB"):
            space.run(space.write("1"), record_mib=value)

    @pytest.mark.parametrize("name", ["kernel_start_timeout", "reconnect_timeout"])
    def test_a_limit_that_must_be_given(self, space: Bench, name: str) -> None:
        with pytest.raises(InvalidInputError, match=f"{name} must be a positive number of seconds, not None"):
            space.run(space.write("1"), **{name: None})

    def test_input_is_refused(self, either: Bench) -> None:
        with pytest.raises(CellError, match="StdinNotImplementedError.*pass the value as a parameter"):
            either.run(either.write("input('name? ')"))
        either.assert_clean()

    def test_crash(self, either: Bench) -> None:
        path = either.write("x = 1\nprint('before')", "import os; os._exit(1)", "print(x)")
        began = time.monotonic()
        with pytest.raises(
            KernelDiedError, match="died while cell 2/3 ran.*it crashed.*memory ran out on ml.t3"
        ) as caught:
            either.run(path)
        assert time.monotonic() - began < 20
        assert caught.value.cell_number == 2
        assert caught.value.output_path is not None
        notebook = either.executed(caught.value.output_path)
        assert notebook.cells[0].outputs[0]["text"] == "before\n"
        assert notebook.cells[2].execution_count is None
        assert {event.cell.number for event in either.of_type(ev.CellStarted)} == {1, 2}
        either.assert_clean()

    def test_kernel_deleted_by_somebody(self, either: Bench) -> None:
        path = either.write("import time; time.sleep(60)")

        def delete() -> None:
            (kernel,) = either.studio.server.kernels()
            somebody = client_of(either.local)
            somebody.server.delete_kernel(kernel["id"])
            somebody.close()

        either.once(ev.CellStarted, delete)
        began = time.monotonic()
        # Deferred, it may be gone before anybody listens again.
        words = "a user or another program restarted it or shut it down|the server does not know it any more"
        with pytest.raises(KernelDiedError, match=words):
            either.run(path)
        assert time.monotonic() - began < 35  # the handshake of a kernel that is gone may be held for 20 s
        either.assert_clean()

    def test_cell_timeout(self, either: Bench) -> None:
        path = either.write("print('before', flush=True)\nimport time; time.sleep(60)", "print('never')")
        began = time.monotonic()
        with pytest.raises(
            CellTimeoutError, match="cell 1/2 took longer than 1.5 s and was interrupted"
        ) as caught:
            either.run(path, cell_timeout=1.5)
        assert 1.5 < time.monotonic() - began < 20
        assert caught.value.output_path is not None
        first, second = either.executed(caught.value.output_path).cells
        assert first.outputs[0]["text"] == "before\n"
        assert first.outputs[1]["ename"] == "KeyboardInterrupt"
        assert second.outputs == []
        either.assert_clean()

    def test_a_cell_that_cannot_be_interrupted_does_not_hang_the_run(self, space: Bench) -> None:
        source = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
        began = time.monotonic()
        with pytest.raises(CellTimeoutError):
            space.run(space.write(source), cell_timeout=1)
        assert time.monotonic() - began < 30
        space.assert_clean()


@both_ways
class TestKernelStart:
    @pytest.fixture
    def broken(self, local_studio: LocalStudio, make_bench: Callable[[LocalStudio], Bench]) -> Iterator[Bench]:
        """A space with kernels that die at once, or never answer."""
        bench = make_bench(local_studio)
        session = bench.studio.server
        bench.path.mkdir()
        kernels = self.kernels_folder(bench)
        for name, program in {"dies": "raise SystemExit(1)", "mute": "import time; time.sleep(600)"}.items():
            folder = kernels / name
            folder.mkdir(parents=True, exist_ok=True)
            spec = {
                "argv": ["python3", "-c", program, "{connection_file}"],
                "display_name": name,
                "language": "python",
            }
            (folder / "kernel.json").write_text(json.dumps(spec))
        assert {"dies", "mute"} <= set(session.kernelspecs().specs)
        yield bench
        for name in ("dies", "mute"):
            (kernels / name / "kernel.json").unlink()
            (kernels / name).rmdir()

    @staticmethod
    def kernels_folder(bench: Bench):
        path = bench.write("import os; print(os.environ['JUPYTER_DATA_DIR'])", name="where.ipynb")
        from pathlib import Path

        output = bench.executed(bench.run(path).output_path).cells[0].outputs[0]["text"]
        return Path(output.strip()) / "kernels"

    def test_timeout(self, broken: Bench) -> None:
        began = time.monotonic()
        with pytest.raises(KernelStartError, match="did not (start|answer) within 3 s"):
            broken.run(broken.write("1"), kernel_name="mute", kernel_start_timeout=3)
        assert time.monotonic() - began < 20
        broken.assert_clean()

    def test_death(self, broken: Bench) -> None:
        began = time.monotonic()
        with pytest.raises(KernelStartError, match="the kernel died while starting|did not start"):
            broken.run(broken.write("1"), kernel_name="dies", kernel_start_timeout=60)
        assert time.monotonic() - began < 60
        broken.assert_clean()


def stop_when(runner: NotebookRunner, condition: Callable[[], bool]) -> Callable[[], float]:
    """Stop a run once something has happened; the answer tells when that was."""
    moments: list[float] = []

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        moments.append(time.monotonic())
        runner.stop("the task was killed")

    threading.Thread(target=watch, daemon=True).start()
    return lambda: moments[0]


class TestStops:
    """Somebody ends the run from outside."""

    def test_stop_in_the_middle_of_a_cell(self, either: Bench) -> None:
        path = either.write(
            "import time\nfor i in range(600):\n    print(i, flush=True); time.sleep(0.1)", "print('never')"
        )
        runner = either.studio.runner(RunSpec(path), listener=either.events.append)
        stopped = stop_when(runner, lambda: len(either.of_type(ev.CellOutput)) >= 3)
        with pytest.raises(RunKilledError, match="stopped while cell 1/2 ran.*the task was killed") as caught:
            runner.run()
        assert time.monotonic() - stopped() < 5
        assert caught.value.output_path is not None
        first, second = either.executed(caught.value.output_path).cells
        assert first.outputs[0]["text"].startswith("0\n1\n2\n")
        assert first.outputs[-1]["ename"] == "KeyboardInterrupt"
        assert second.outputs == []
        either.assert_clean()

    def test_stop_takes_seconds_even_if_the_cell_ignores_it(self, space: Bench) -> None:
        source = (
            "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "print('on', flush=True)\ntime.sleep(60)"
        )
        runner = space.studio.runner(RunSpec(space.write(source)), listener=space.events.append)
        stopped = stop_when(runner, lambda: bool(space.of_type(ev.CellOutput)))
        with pytest.raises(RunKilledError):
            runner.run()
        # Airflow 3 gives a killed task five seconds.
        assert time.monotonic() - stopped() < 5
        deadline = time.monotonic() + 10
        while space.local.kernels() and time.monotonic() < deadline:
            time.sleep(0.1)
        space.assert_clean()

    def test_stop_before_the_kernel_has_started(self, either: Bench) -> None:
        runner = either.studio.runner(RunSpec(either.write("1")))
        runner.stop("too early")
        with pytest.raises(RunKilledError, match="too early"):
            runner.run()
        deadline = time.monotonic() + 10
        while either.local.kernels() and time.monotonic() < deadline:
            time.sleep(0.1)
        either.assert_clean()

    def test_ctrl_c(self, either: Bench) -> None:
        path = either.write("import time\nprint('on', flush=True)\ntime.sleep(60)")
        either.once(ev.CellOutput, lambda: signal.raise_signal(signal.SIGINT))
        began = time.monotonic()
        # A process that a shell has started in the background ignores the signal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                either.run(path)
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - began < 8
        notebook = either.executed()
        assert notebook.cells[0].outputs[0]["text"] == "on\n"
        assert notebook.metadata["papermill"]["exception"] is True
        either.assert_clean()
