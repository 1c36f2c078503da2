"""Apps that are started and stopped for notebooks, by several at once and beside people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import Studio
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppInUseError,
    ControlPlaneError,
    InvalidInputError,
    ServerError,
)
from airflow_provider_smstudio.studio.execution.cell_request import execute_request
from airflow_provider_smstudio.studio.jupyter import websocket
from airflow_provider_smstudio.studio.notebook.document import CodeCell
from airflow_provider_smstudio.studio.protocol.messages import Message
from airflow_provider_smstudio.studio.runs.abandoned import epoch_of
from airflow_provider_smstudio.studio.sagemaker import app_start, app_stop, app_tags
from airflow_provider_smstudio.studio.sagemaker.app_start import AppStarter, StartRequest, Step
from airflow_provider_smstudio.studio.sagemaker.app_stop import AppStopper, StopRequest
from tests.helpers.bench import client_of
from tests.helpers.faults import wait_for

ASKED: dict[str, Any] = {"session_id": "a-person", "stop_on_error": True, "saved": []}


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStudio]:
    with LocalStudio(app_status="Stopped") as local:
        yield local


@pytest.fixture
def studio(local: LocalStudio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A client of a space whose app is stopped."""
    monkeypatch.setattr(app_start, "_FIRST_PAUSE", 0.1)
    local.stop_app()
    studio = client_of(local)
    yield studio
    studio.close()
    local.switches.no_capacity = local.switches.no_quota = local.switches.denied = ()
    local.switches.app_start_failure = None
    local.switches.app_start_delay = local.switches.app_stop_delay = 0.0


def starter(studio: Studio, holder: str = "dag.one", **about: Any) -> AppStarter:
    return AppStarter(studio.control_plane, StartRequest(holder, **about))


def stopper(studio: Studio, holder: str = "dag.one", others: tuple[int, int] = (0, 0), **about: Any) -> AppStopper:
    request = StopRequest(holder, **{"idle_minutes": 0.0, **about})
    return AppStopper(studio.control_plane, studio.server, request, other_runs=lambda: others)


def finish(step: Callable[[], Step], limit: float = 30.0) -> str:
    """Take all steps, in a hurry."""
    deadline = time.monotonic() + limit
    while True:
        found = step()
        if found.wait is None:
            return found.text
        assert time.monotonic() < deadline, found.text
        time.sleep(min(found.wait, 0.1))


def start_quiet_kernel(studio: Studio) -> dict[str, Any]:
    """Start somebody's kernel, and wait until it has started and has said nothing for a while."""
    session = studio.server.start_session({"name": "python3"}, "idle.ipynb", "idle.ipynb", timeout=60)
    kernel_id = session["kernel"]["id"]
    websocket.connect(studio.session, kernel_id, "a-person", timeout=60).close()
    wait_for(lambda: (epoch_of(studio.server.kernels()[0]["last_activity"]) or 0) < time.time() - 1.5)
    return session


def start(studio: Studio, holder: str = "dag.one", **about: Any) -> AppStarter:
    made = starter(studio, holder, **about)
    assert finish(made.step) == "the JupyterLab app of space 'demo-space' runs"
    return made


class TestStart:
    def test_it_gets_the_spaces_own_resources(self, local: LocalStudio, studio: Studio) -> None:
        made = start(studio)
        assert made.requested_at is not None
        spec = studio.control_plane._call("describe_app", studio.control_plane._app)["ResourceSpec"]
        assert spec["InstanceType"] == "ml.t3.medium"
        assert "image/sagemaker-distribution" in spec["SageMakerImageArn"]
        assert sorted(key.rsplit(":", 1)[0] for key in local.app_tags) == ["smstudio", "smstudio:hold"]

    def test_what_is_asked_for_goes_before(self, studio: Studio) -> None:
        image = "arn:aws:sagemaker:us-east-1:123456789012:image-version/mine/1"
        lifecycle = "arn:aws:sagemaker:us-east-1:123456789012:studio-lifecycle-config/mine"
        start(
            studio,
            resource_spec={
                "InstanceType": "ml.m5.large",
                "SageMakerImageArn": image,
                "LifecycleConfigArn": lifecycle,
            },
        )
        spec = studio.control_plane._call("describe_app", studio.control_plane._app)["ResourceSpec"]
        assert spec == {
            "InstanceType": "ml.m5.large",
            "SageMakerImageArn": image,
            "LifecycleConfigArn": lifecycle,
        }

    def test_one_that_runs_is_taken_as_it_is(self, local: LocalStudio, studio: Studio) -> None:
        start(studio, "dag.one")
        calls = local.api_calls["CreateApp"]
        second = start(studio, "dag.two")
        assert second.requested_at is None
        assert local.api_calls["CreateApp"] == calls
        assert sum(key.startswith("smstudio:hold:") for key in local.app_tags) == 2

    def test_one_that_somebody_else_is_starting(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.app_start_delay = 1.0
        first, second = starter(studio, "dag.one"), starter(studio, "dag.two")
        assert "is starting on ml.t3.medium" in first.step().text
        assert second.step().text == "the JupyterLab app of space 'demo-space' is starting"
        finish(first.step)
        finish(second.step)
        assert second.requested_at is None

    def test_one_that_is_being_stopped_is_started_when_it_has(self, local: LocalStudio, studio: Studio) -> None:
        start(studio)
        local.switches.app_stop_delay = 1.0
        studio.control_plane.delete_app()
        again = starter(studio, "dag.two")
        assert "is being stopped" in again.step().text
        finish(again.step)
        assert again.requested_at is not None

    def test_no_capacity_leads_to_the_next_type(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.no_capacity = ("ml.g5.48xlarge", "ml.g5.24xlarge")
        start(
            studio,
            resource_spec={"InstanceType": "ml.g5.48xlarge"},
            fallback_instance_types=["ml.g5.24xlarge", "ml.g5.12xlarge"],
        )
        assert studio.describe_app().instance_type == "ml.g5.12xlarge"

    def test_no_capacity_anywhere_is_waited_out(
        self, local: LocalStudio, studio: Studio, caplog: pytest.LogCaptureFixture
    ) -> None:
        local.switches.no_capacity = ("ml.t3.medium",)
        made = starter(studio)
        for _ in range(4):
            made.step()
            time.sleep(0.15)
        assert "no capacity for ml.t3.medium: trying again in 0 s" in caplog.text
        local.switches.no_capacity = ()
        finish(made.step)

    def test_a_fault_of_the_service_is_tried_again(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.app_start_failure = "InternalFailure"
        made = starter(studio)
        made.step()
        wait_for(lambda: local.app_status == "Failed")
        local.switches.app_start_failure = None
        finish(made.step)

    def test_but_not_for_ever(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.app_start_failure = "InternalFailure"
        with pytest.raises(AppFailedError, match="has failed to start: InternalFailure"):
            finish(starter(studio).step)

    def test_a_hold_goes_with_its_app(self, local: LocalStudio, studio: Studio) -> None:
        """Ours fails, and somebody else starts the next one before we do: it is held as well."""
        local.switches.app_start_failure = "InternalFailure"
        ours, theirs = starter(studio, "dag.one"), starter(studio, "dag.two")
        ours.step()
        wait_for(lambda: local.app_status == "Failed")
        local.switches.app_start_failure = None
        local.switches.app_start_delay = 1.0
        theirs.step()
        finish(ours.step)
        assert sum(key.startswith("smstudio:hold:") for key in local.app_tags) == 2

    @pytest.mark.parametrize(
        "reason", ["ConfigurationError: LifecycleConfig failed", "LifecycleConfigTimeout: 5 minutes"]
    )
    def test_a_wrong_configuration_fails_at_once(self, local: LocalStudio, studio: Studio, reason: str) -> None:
        local.switches.app_start_failure = reason
        before = local.api_calls.get("CreateApp", 0)
        with pytest.raises(AppFailedError, match=reason) as caught:
            finish(starter(studio).step)
        assert caught.value.failure_reason == reason
        assert local.api_calls["CreateApp"] == before + 1

    def test_an_old_failure_is_none_of_ours(self, local: LocalStudio, studio: Studio) -> None:
        local.fail_app("ConfigurationError: yesterday's")
        start(studio)

    def test_a_quota_fails_at_once_in_the_services_words(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.no_quota = ("ml.p4d.24xlarge",)
        with pytest.raises(
            AppFailedError, match="Studio JupyterLab Apps running on ml.p4d.24xlarge instance' is 0"
        ):
            starter(studio, resource_spec={"InstanceType": "ml.p4d.24xlarge"}).step()

    def test_a_space_without_an_image(self, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            studio.control_plane, "default_resource_spec", lambda: {"InstanceType": "ml.t3.medium"}
        )
        with pytest.raises(AppFailedError, match="give SageMakerImageArn in resource_spec"):
            starter(studio).step()

    def test_a_field_that_create_app_does_not_know(self, studio: Studio) -> None:
        with pytest.raises(InvalidInputError, match="no field 'EnvironmentArn'; CreateApp takes InstanceType"):
            starter(studio, resource_spec={"EnvironmentArn": "x"})

    @pytest.mark.parametrize("denied", [("AddTags", "ListTags"), ("ListTags",)])
    def test_without_leave_to_tag(
        self, local: LocalStudio, studio: Studio, denied: tuple[str, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        local.switches.denied = denied
        start(studio)
        assert "Without tags, other runs cannot see that the app is in use" in caplog.text

    def test_without_leave_to_start(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.denied = ("CreateApp",)
        with pytest.raises(ControlPlaneError, match="The role needs sagemaker:CreateApp"):
            starter(studio).step()


class TestStop:
    def test_the_last_hold_stops_it(self, local: LocalStudio, studio: Studio) -> None:
        start(studio, "dag.one")
        start(studio, "dag.two")
        first = stopper(studio, "dag.one")
        assert finish(first.step).endswith("is left running: it is used by dag.two")
        assert not first.stopped
        last = stopper(studio, "dag.two")
        assert finish(last.step).endswith("is stopped")
        assert last.stopped
        assert local.app_status == "Deleted"

    def test_twice_is_no_error(self, studio: Studio) -> None:
        start(studio)
        finish(stopper(studio).step)
        again = stopper(studio)
        assert finish(again.step).endswith("is stopped")
        assert again.stopped

    def test_without_waiting(self, local: LocalStudio, studio: Studio) -> None:
        local.switches.app_stop_delay = 1.0
        start(studio)
        assert finish(stopper(studio, wait_for_completion=False).step).endswith("is being stopped")
        assert local.app_status == "Deleting"
        wait_for(lambda: local.app_status == "Deleted")

    def test_somebody_elses_app_is_left(self, local: LocalStudio, studio: Studio) -> None:
        local.start_app()
        start(studio)  # holds it, and has not started it
        assert "was not started by this provider" in finish(stopper(studio).step)
        assert local.app_status == "InService"
        assert local.app_tags == {}
        finish(stopper(studio, started_by="anyone").step)
        assert local.app_status == "Deleted"

    def test_queued_runs_will_stop_it_themselves(self, local: LocalStudio, studio: Studio) -> None:
        start(studio)
        assert "3 more runs of this DAG are queued" in finish(stopper(studio, others=(3, 0)).step)
        assert local.app_status == "InService"

    def test_one_of_those_that_end_together_waits_for_what_comes(self, local: LocalStudio, studio: Studio) -> None:
        start(studio, "dag.one")
        start(studio, "dag.two")
        both = [stopper(studio, holder, others=(0, 1), linger=60) for holder in ("dag.one", "dag.two")]
        assert "is used by dag.two" in both[0].step().text
        waiting = both[1].step()
        assert "waits up to 60 s more for 1 other runs" in waiting.text
        assert waiting.wait is not None
        start(studio, "dag.three")
        assert "is used by dag.three" in finish(both[1].step)
        finish(stopper(studio, "dag.three").step)
        assert local.app_status == "Deleted"

    def test_of_two_that_wait_one_stays(self, local: LocalStudio, studio: Studio) -> None:
        start(studio, "dag.one")
        all_of_them = [stopper(studio, holder, others=(0, 2)) for holder in ("dag.one", "dag.two", "dag.three")]
        for one in all_of_them:
            one.step()
        texts = [one.step() for one in all_of_them]
        assert [text.wait is not None for text in texts].count(True) == 1
        assert sum("is left to dag." in text.text for text in texts) == 2
        assert local.app_status == "InService"

    def test_nobody_comes(self, local: LocalStudio, studio: Studio) -> None:
        start(studio)
        finish(stopper(studio, others=(0, 1), linger=0.3).step)
        assert local.app_status == "Deleted"

    def test_who_comes_while_it_is_being_closed_waits(self, local: LocalStudio, studio: Studio) -> None:
        start(studio, "dag.one")
        arn = studio.describe_app().arn
        assert arn is not None
        studio.control_plane.add_tags(arn, app_tags.closing("dag.one", time.time()))
        second = starter(studio, "dag.two")
        assert second.step() == Step(
            "the JupyterLab app of space 'demo-space' is about to be stopped by dag.one", 5.0
        )
        assert "is used by dag.two" in stopper(studio, "dag.one").step().text  # it saw the hold in time
        assert second.step().wait is None


def is_idle_after(message: Message | None, msg_id: str) -> bool:
    if message is None or message["parent_header"].get("msg_id") != msg_id:
        return False
    return message["header"]["msg_type"] == "status" and message["content"]["execution_state"] == "idle"


class TestBusy:
    """Somebody else's session, which computes."""

    @pytest.fixture
    def busy(self, local: LocalStudio, studio: Studio) -> Iterator[Studio]:
        start(studio)
        studio.session.renew()
        session = studio.server.start_session({"name": "python3"}, "analysis.ipynb", "analysis.ipynb", timeout=60)
        kernel_id = session["kernel"]["id"]
        person = websocket.connect(studio.session, kernel_id, "a-person", timeout=30)
        # The server asks a kernel for its state when a websocket opens. A late answer to that, on the control channel,
        # would show a busy kernel as idle; so a first cell ends before the long one begins.
        person.send(execute_request(CodeCell(0, 0, "import time", False), "first-cell", **ASKED))
        wait_for(lambda: is_idle_after(person.receive(1.0), "first-cell"))
        person.send(execute_request(CodeCell(1, 0, "time.sleep(60)", False), "their-cell", **ASKED))
        wait_for(lambda: studio.server.kernel_state(kernel_id) == "busy")
        yield studio
        person.close()
        if local.app_status == "InService":
            studio.server.delete_session(session["id"])

    def test_it_is_left(self, local: LocalStudio, busy: Studio) -> None:
        text = finish(stopper(busy).step)
        assert text == "the JupyterLab app of space 'demo-space' is in use: analysis.ipynb; it is left running"
        assert local.app_status == "InService"

    def test_or_waited_for(self, local: LocalStudio, busy: Studio) -> None:
        waiting = stopper(busy, if_busy="wait")
        assert waiting.step() == Step("the JupyterLab app of space 'demo-space' is in use: analysis.ipynb", 10.0)
        busy.server.interrupt(busy.server.kernels()[0]["id"])
        wait_for(lambda: busy.server.kernels()[0]["execution_state"] == "idle")
        finish(waiting.step)
        assert local.app_status == "Deleted"

    def test_or_an_error(self, busy: Studio) -> None:
        with pytest.raises(
            AppInUseError, match="is in use: analysis.ipynb. Wait for it with if_busy='wait'"
        ) as caught:
            stopper(busy, if_busy="fail").step()
        assert caught.value.used_by == ["analysis.ipynb"]

    def test_or_stopped_all_the_same(self, local: LocalStudio, busy: Studio) -> None:
        finish(stopper(busy, if_busy="stop").step)
        assert local.app_status == "Deleted"

    def test_a_person_who_was_here_a_moment_ago(self, local: LocalStudio, studio: Studio) -> None:
        start(studio)
        studio.session.renew()
        session = studio.server.start_session({"name": "python3"}, "idle.ipynb", "idle.ipynb", timeout=60)
        assert "is in use: idle.ipynb" in finish(stopper(studio, idle_minutes=15).step)
        studio.server.delete_session(session["id"])

    def test_a_person_who_was_here_long_ago(self, local: LocalStudio, studio: Studio) -> None:
        """Before their kernel is called idle, it is tried whether the server notes activity; this one does."""
        start(studio)
        studio.session.renew()
        start_quiet_kernel(studio)
        finish(stopper(studio, idle_minutes=0.01).step)
        assert local.app_status == "Deleted"

    @pytest.mark.parametrize(
        "answer", [False, ServerError("no kernel today", status=503)], ids=["no", "nobody knows"]
    )
    def test_where_the_server_notes_no_activity_every_kernel_counts_as_used(
        self,
        local: LocalStudio,
        studio: Studio,
        answer: object,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """jupyter_server_documents 0.2.0 to 0.2.2: somebody at work looks idle."""
        paths: list[str] = []

        def notes_activity(server: object, path: str) -> bool:
            paths.append(path)
            if isinstance(answer, Exception):
                raise answer
            return bool(answer)

        monkeypatch.setattr(app_stop, "notes_activity", notes_activity)
        start(studio)
        studio.session.renew()
        session = start_quiet_kernel(studio)
        waiting = stopper(studio, idle_minutes=0.01, if_busy="wait")
        for _ in range(3):
            assert "is in use: idle.ipynb" in waiting.step().text
        assert len(paths) == 1
        assert caplog.text.count("every kernel counts as used") == 1
        studio.server.delete_session(session["id"])
        finish(waiting.step)
        assert local.app_status == "Deleted"


class TestStopWithoutTags:
    def test_it_is_not_stopped_unseen(self, local: LocalStudio, studio: Studio) -> None:
        start(studio)
        local.switches.denied = ("ListTags",)
        with pytest.raises(AppInUseError, match="The role needs sagemaker:ListTags. Allow it, or set started_by"):
            stopper(studio).step()
        assert local.app_status == "InService"

    def test_unless_it_does_not_matter_who_started_it(
        self, local: LocalStudio, studio: Studio, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(studio)
        local.switches.denied = ("ListTags", "DeleteTags", "AddTags")
        finish(stopper(studio, started_by="anyone").step)
        assert local.app_status == "Deleted"
        assert "not known whether another run uses the app" in caplog.text
