"""The control plane, asked by an unmodified boto3."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from airflow_provider_smstudio.local import LocalStudio

DOMAIN = {"DomainId": "d-localstudio"}
SPACE = {**DOMAIN, "SpaceName": "demo-space"}
PROFILE = {**DOMAIN, "UserProfileName": "demo-user"}
APP = {**SPACE, "AppType": "JupyterLab", "AppName": "default"}
LINK = {**PROFILE, "SpaceName": "demo-space"}
IMAGE = {"SageMakerImageArn": "arn:aws:sagemaker:us-east-1:885854791233:image/sagemaker-distribution-cpu"}


def refused(call: Callable[..., Any], **params: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**params)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def wait_for(studio: LocalStudio, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (app := studio.client().describe_app(**APP))["Status"] != status:
        assert time.monotonic() < deadline, app
        time.sleep(0.05)
    return app


def test_describes_what_exists(spaces: LocalStudio) -> None:
    client = spaces.client()
    domain = client.describe_domain(**DOMAIN)
    assert (domain["AuthMode"], domain["Status"]) == ("IAM", "InService")
    age = datetime.datetime.now(datetime.timezone.utc) - domain["CreationTime"]
    assert 0 <= age.total_seconds() < 24 * 3600
    assert client.describe_user_profile(**PROFILE)["Status"] == "InService"
    space = client.describe_space(**SPACE)
    assert space["OwnershipSettings"]["OwnerUserProfileName"] == "demo-user"
    assert space["SpaceSettings"]["JupyterLabAppSettings"]["DefaultResourceSpec"]["InstanceType"] == "ml.t3.medium"
    assert [found["SpaceName"] for found in client.list_spaces(DomainIdEquals="d-localstudio")["Spaces"]] == [
        "demo-space"
    ]
    assert client.list_spaces(SpaceNameContains="other")["Spaces"] == []


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("describe_domain", {"DomainId": "d-other"}),
        ("describe_user_profile", {**PROFILE, "UserProfileName": "nobody"}),
        ("describe_space", {**SPACE, "SpaceName": "nowhere"}),
        ("describe_app", {**APP, "AppName": "other"}),
        ("delete_app", {**APP, "SpaceName": "nowhere"}),
        ("create_presigned_domain_url", {**LINK, "DomainId": "d-other"}),
        ("create_presigned_domain_url", {**LINK, "UserProfileName": "nobody"}),
        ("create_presigned_domain_url", {**LINK, "SpaceName": "nowhere"}),
    ],
)
def test_unknown_things_raise_the_modelled_exception(
    spaces: LocalStudio, operation: str, params: dict[str, Any]
) -> None:
    client = spaces.client()
    with pytest.raises(client.exceptions.ResourceNotFound, match="does not exist"):
        getattr(client, operation)(**params)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({**LINK, "ExpiresInSeconds": 301}, "less than or equal to 300"),
        ({**LINK, "SessionExpirationDurationInSeconds": 43201}, "less than or equal to 43200"),
        ({**LINK, "DomainId": "no-domain"}, "regular expression pattern"),
        ({**LINK, "LandingUri": "nonsense"}, "Invalid landing uri"),
        (
            {**PROFILE, "LandingUri": "app:JupyterLab:demo-space"},
            "Provided app type JupyterLab is invalid for provided url type app for personal apps",
        ),
    ],
)
def test_bad_login_link_requests(spaces: LocalStudio, params: dict[str, Any], text: str) -> None:
    code, message = refused(spaces.client().create_presigned_domain_url, **params)
    assert code == "ValidationException"
    assert text in message


def test_lower_bounds_are_checked_by_the_service_too(spaces: LocalStudio) -> None:
    # boto3 refuses these itself, so they are sent by hand.
    for name, value in (("ExpiresInSeconds", 4), ("SessionExpirationDurationInSeconds", 1799)):
        answer = requests.post(
            spaces.endpoint_url,
            data=json.dumps({**LINK, name: value}),
            headers={
                "X-Amz-Target": "SageMaker.CreatePresignedDomainUrl",
                "Authorization": "AWS4-HMAC-SHA256 Credential=x",
            },
            timeout=10,
        )
        assert answer.status_code == 400
        assert answer.json()["__type"] == "ValidationException"


def test_requests_must_be_signed_and_known(spaces: LocalStudio) -> None:
    unsigned = requests.post(spaces.endpoint_url, headers={"X-Amz-Target": "SageMaker.ListApps"}, timeout=10)
    assert unsigned.json()["__type"] == "MissingAuthenticationTokenException"
    assert refused(spaces.client().list_domains)[0] == "UnknownOperationException"


def test_no_login_link_in_an_sso_domain(spaces: LocalStudio) -> None:
    spaces.switches.auth_mode = "SSO"
    assert refused(spaces.client().create_presigned_domain_url, **LINK)[0] == "ValidationException"
    assert spaces.client().describe_domain(**DOMAIN)["AuthMode"] == "SSO"


@pytest.fixture
def stopped() -> Iterator[LocalStudio]:
    with LocalStudio(app_status="Stopped") as studio:
        yield studio


def test_create_app_that_exists(spaces: LocalStudio) -> None:
    with pytest.raises(spaces.client().exceptions.ResourceInUse):
        spaces.client().create_app(**APP, ResourceSpec=IMAGE)


def test_create_app_rules(stopped: LocalStudio) -> None:
    create = stopped.client().create_app
    assert "SageMaker Image ARN is required for App with type [JupyterLab]" in refused(create, **APP)[1]
    code, text = refused(create, **PROFILE, AppType="KernelGateway", AppName="kg")
    assert code == "ValidationException"
    assert text == "Invalid request provided: Invalid AppType [KernelGateway]. This AppType has been deprecated."
    assert refused(create, **{**APP, "AppName": "mine"}, ResourceSpec=IMAGE)[0] == "ValidationException"
    assert refused(create, **{**APP, "AppType": "Nothing"}, ResourceSpec=IMAGE)[0] == "ValidationException"
    assert refused(create, **APP, UserProfileName="demo-user", ResourceSpec=IMAGE)[0] == "ValidationException"


def test_delete_then_create_is_a_real_stop_and_start(spaces: LocalStudio) -> None:
    client, old_server = spaces.client(), spaces.server_url
    assert requests.get(f"{old_server}/api/status", timeout=5).status_code == 200
    client.delete_app(**APP)
    assert client.describe_app(**APP)["Status"] in ("Deleting", "Deleted")
    wait_for(spaces, "Deleted")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{old_server}/api/status", timeout=5)
    assert "has already been deleted" in refused(client.delete_app, **APP)[1]
    assert [app["Status"] for app in client.list_apps()["Apps"]] == ["Deleted"]

    spaces.switches.app_start_delay = 0.3
    arn = client.create_app(**APP, ResourceSpec={**IMAGE, "InstanceType": "ml.m5.large"})["AppArn"]
    assert arn == "arn:aws:sagemaker:us-east-1:123456789012:app/d-localstudio/demo-space/jupyterlab/default"
    assert client.describe_app(**APP)["Status"] == "Pending"
    app = wait_for(spaces, "InService")
    assert app["ResourceSpec"]["InstanceType"] == "ml.m5.large"
    assert app["LastHealthCheckTimestamp"] == app["LastUserActivityTimestamp"]
    new_server = spaces.server_url
    assert requests.get(f"{new_server}/api/status", timeout=5).status_code == 200

    spaces.fail_app("InternalFailure")
    assert client.describe_app(**APP)["FailureReason"] == "InternalFailure"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{new_server}/api/status", timeout=5)


def test_app_that_fails_to_start(stopped: LocalStudio) -> None:
    stopped.switches.app_start_failure = "EC2InsufficientCapacityError: try again"
    stopped.client().create_app(**APP, ResourceSpec=IMAGE)
    assert wait_for(stopped, "Failed")["FailureReason"] == "EC2InsufficientCapacityError: try again"
    assert "previously failed and was automatically deleted" in refused(stopped.client().delete_app, **APP)[1]


def test_never_created_and_never_ending(tmp_path: Any) -> None:
    with LocalStudio(home=tmp_path, app_status="Missing") as studio:
        client = studio.client()
        with pytest.raises(client.exceptions.ResourceNotFound):
            client.describe_app(**APP)
        assert studio.apps() == []
        assert studio.home == tmp_path
    with LocalStudio(app_status="Pending") as studio:
        assert studio.client().describe_app(**APP)["Status"] == "Pending"
        studio.stop_app()
        assert studio.client().describe_app(**APP)["Status"] == "Deleted"


def test_list_apps_in_pages(classic: LocalStudio) -> None:
    client = classic.client()
    pages = client.get_paginator("list_apps").paginate(
        DomainIdEquals="d-localstudio", PaginationConfig={"PageSize": 1}
    )
    names = [app["AppType"] for page in pages for app in page["Apps"]]
    assert names.count("JupyterServer") == 1
    assert len(names) == len(classic.apps())
    assert client.list_apps(SpaceNameEquals="demo-space")["Apps"] == []
    code, _ = refused(client.list_apps, NextToken="nonsense")
    assert code == "ValidationException"


def test_boto3_finds_it_through_the_environment(spaces: LocalStudio) -> None:
    code = (
        "import os, boto3; c = boto3.client('sagemaker'); "
        "print(c.describe_space(DomainId=os.environ['SMSTUDIO_DOMAIN_ID'],"
        " SpaceName=os.environ['SMSTUDIO_SPACE_NAME'])['Status'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **spaces.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "InService"


def test_switches_refuse_nonsense(spaces: LocalStudio) -> None:
    with pytest.raises(AttributeError, match="no such switch"):
        spaces.switches.unautenticated = "302"
    with pytest.raises(ValueError, match="must be one of 403, 302, 200-html"):
        spaces.switches.unauthenticated = "404"
    with pytest.raises(ValueError, match="flavour must be one of"):
        LocalStudio("codeeditor")
