"""Notebooks that come from S3: real boto3 against a scripted server."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest

from airflow_provider_smstudio.studio import RunSpec, Studio
from airflow_provider_smstudio.studio.errors import (
    ControlPlaneError,
    InvalidInputError,
    NotANotebookError,
    NotebookNotFoundError,
)
from tests.helpers.bench import Bench, client_of
from tests.helpers.scripted_gateway import Door, open_door

MISSING = "<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"


@pytest.fixture
def s3() -> Iterator[Door]:
    yield from open_door()


@pytest.fixture
def studio(space: Bench, s3: Door) -> Iterator[Studio]:
    clients = []

    def factory() -> object:
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        clients.append(boto3.client("s3", region_name="us-east-1", endpoint_url=s3.url, **keys))
        return clients[-1]

    studio = client_of(space.local, s3_client_factory=factory)
    yield studio
    studio.close()
    for client in clients:
        client.close()


def spec(space: Bench, url: str) -> RunSpec:
    return RunSpec(f"{space.folder}/from/s3.ipynb", upload_from=url)


def test_an_object_is_copied_into_new_folders_and_run(space: Bench, s3: Door, studio: Studio) -> None:
    text = (space.local.home / space.write("print('from S3')")).read_text()
    s3.answers["/bucket/some%20where/a.ipynb"] = (200, {}, text)
    result = studio.runner(spec(space, "s3://bucket/some where/a.ipynb")).run()
    assert space.executed(result.output_path).cells[0].outputs[0]["text"] == "from S3\n"
    space.assert_clean()


def test_a_missing_object(space: Bench, s3: Door, studio: Studio) -> None:
    s3.answers["/bucket/none.ipynb"] = (404, {}, MISSING)
    with pytest.raises(NotebookNotFoundError, match="there is no 's3://bucket/none.ipynb' in S3: NoSuchKey"):
        studio.runner(spec(space, "s3://bucket/none.ipynb"))


def test_an_object_that_may_not_be_read(space: Bench, s3: Door, studio: Studio) -> None:
    s3.answers["/bucket/none.ipynb"] = (403, {}, MISSING.replace("NoSuchKey", "AccessDenied"))
    with pytest.raises(
        ControlPlaneError, match=r"could not be read from S3: AccessDenied\. The role needs s3:GetObject"
    ):
        studio.runner(spec(space, "s3://bucket/none.ipynb"))


def test_an_object_that_is_no_notebook(space: Bench, s3: Door, studio: Studio) -> None:
    s3.answers["/bucket/data.csv"] = (200, {}, "a,b\n1,2\n")
    with pytest.raises(NotANotebookError, match="'s3://bucket/data.csv' is not a valid notebook"):
        studio.runner(spec(space, "s3://bucket/data.csv"))
    assert not (space.path / "from").exists()


def test_without_a_client_for_s3(space: Bench) -> None:
    with pytest.raises(InvalidInputError, match="no s3_client_factory was given"):
        space.studio.runner(spec(space, "s3://bucket/a.ipynb"))
