"""The operator that removes what lost workers have left."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.cleanup import SageMakerStudioCleanupOperator
from airflow_provider_smstudio.studio.errors import AppNotReadyError, InvalidInputError
from airflow_provider_smstudio.studio.runs.identity import identity_of


def operator(local: LocalStudio, **arguments: Any) -> SageMakerStudioCleanupOperator:
    return SageMakerStudioCleanupOperator(
        task_id="tidy",
        domain_id=local.domain_id,
        user_profile_name=local.user_profile_name,
        space_name=local.space_name,
        region_name="us-east-1",
        **arguments,
    )


@pytest.fixture
def left(lab: LocalStudio) -> str:
    """A session that a lost worker has left, and one of a person."""
    server = operator(lab).make_hook().get_studio().server
    who = identity_of("dag.task.run", "dag.task.run")
    name = who.session_name("abc", since=int(time.time()) - 7200)
    server.start_session({"name": "python3"}, who.session_path("work.ipynb"), name, timeout=60)
    server.start_session({"name": "python3"}, "person.ipynb", "person.ipynb", timeout=60)
    time.sleep(0.5)
    return name


def paths(local: LocalStudio) -> set[str]:
    return {str(session["path"]) for session in local.sessions()}


def test_removes_ours_and_leaves_theirs(lab: LocalStudio, left: str) -> None:
    try:
        assert operator(lab, older_than_hours="1").execute({}) == []  # its kernel has only just been started
        assert operator(lab, older_than_hours=0.1 / 3600, report_only="yes").execute({}) == [left]
        assert len(lab.sessions()) == 2
        assert operator(lab, older_than_hours=f"{0.1 / 3600}").execute({}) == [left]
        assert paths(lab) == {"person.ipynb"}
        assert operator(lab, older_than_hours=0.1 / 3600).execute({}) == []
    finally:
        server = operator(lab).make_hook().get_studio().server
        for session in lab.sessions():
            server.delete_session(session["id"])


@pytest.mark.parametrize("hours", [0, "soon", -1])
def test_a_bad_time_is_refused(lab: LocalStudio, hours: Any) -> None:
    with pytest.raises(InvalidInputError, match="older_than_hours"):
        operator(lab, older_than_hours=hours).execute({})


def test_a_stopped_app_has_nothing_to_remove(lab: LocalStudio) -> None:
    lab.stop_app()
    try:
        with pytest.raises(AppNotReadyError):
            operator(lab).execute({})
    finally:
        lab.start_app()
