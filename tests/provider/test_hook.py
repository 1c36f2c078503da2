from __future__ import annotations

import json
import pickle
from contextlib import closing
from typing import Any
from unittest.mock import create_autospec

import pytest
from botocore.stub import Stubber

from airflow_provider_smstudio import _compat, _secrets
from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook
from airflow_provider_smstudio.studio import client as studio_client
from airflow_provider_smstudio.studio.errors import ControlPlaneError, InvalidInputError
from airflow_provider_smstudio.studio.sagemaker.control_plane import AppState

GIVEN: dict[str, Any] = {"domain_id": "d-abc123", "user_profile_name": "jane", "space_name": "lab"}


@pytest.fixture
def connection(monkeypatch):
    """Return a function that defines a connection."""

    def define(conn_id="studio", conn_type="sagemaker_studio", **fields):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": conn_type, **fields}))
        return conn_id

    return define


@pytest.fixture
def studio_class(monkeypatch):
    """Replace the Studio client, which would call AWS, by one of the same shape."""
    replacement = create_autospec(studio_client.Studio)
    monkeypatch.setattr(studio_client, "Studio", replacement)
    return replacement


# --- settings


def test_works_without_any_studio_connection():
    settings = SageMakerStudioHook(**GIVEN).settings
    assert (settings.domain_id, settings.user_profile_name, settings.space_name) == ("d-abc123", "jane", "lab")
    assert (settings.app_type, settings.aws_conn_id, settings.region_name) == ("JupyterLab", "aws_default", None)


def test_every_field_can_come_from_the_connection(connection):
    conn_id = connection(
        host="d-conn",
        login="joe",
        extra={"space_name": "s", "app_type": "JupyterLab", "region_name": "us-east-2", "aws_conn_id": "other"},
    )
    settings = SageMakerStudioHook(conn_id).settings
    assert (settings.domain_id, settings.user_profile_name, settings.space_name) == ("d-conn", "joe", "s")
    assert (settings.app_type, settings.region_name, settings.aws_conn_id) == ("JupyterLab", "us-east-2", "other")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("domain_id", "d-arg"),
        ("user_profile_name", "arg"),
        ("space_name", "arg"),
        ("region_name", "eu-north-1"),
        ("aws_conn_id", "arg"),
        ("aws_conn_id", None),
    ],
)
def test_each_argument_overrides_its_field_alone(connection, argument, value):
    conn_id = connection(
        host="d-conn", login="joe", extra={"space_name": "s", "region_name": "us-east-2", "aws_conn_id": "other"}
    )
    from_connection = SageMakerStudioHook(conn_id).settings
    overridden = SageMakerStudioHook(conn_id, **{argument: value}).settings
    assert overridden != from_connection
    assert {**vars(overridden)} == {**vars(from_connection), argument: value}


def test_app_type_of_an_argument_overrides_the_connection(connection):
    conn_id = connection(host="d-conn", login="joe", extra={"app_type": "JupyterServer"})
    assert SageMakerStudioHook(conn_id).settings.app_type == "JupyterServer"
    lab = SageMakerStudioHook(conn_id, app_type="JupyterLab", space_name="s").settings
    assert (lab.app_type, lab.space_name) == ("JupyterLab", "s")


def test_an_empty_string_counts_as_not_given(connection):
    conn_id = connection(host="d-conn", login="joe", extra={"space_name": "s", "aws_conn_id": "other"})
    empty: dict[str, Any] = dict.fromkeys(
        ("domain_id", "user_profile_name", "space_name", "app_type", "aws_conn_id", "region_name"), ""
    )
    assert SageMakerStudioHook(conn_id, **empty).settings == SageMakerStudioHook(conn_id).settings


@pytest.mark.parametrize(
    ("extra", "aws_conn_id"),
    [({}, "aws_default"), ({"aws_conn_id": ""}, "aws_default"), ({"aws_conn_id": None}, None)],
)
def test_aws_connection_of_the_studio_connection(connection, extra, aws_conn_id):
    conn_id = connection(host="d-conn", login="joe", extra={"space_name": "s", **extra})
    assert SageMakerStudioHook(conn_id).settings.aws_conn_id == aws_conn_id


def test_a_studio_connection_that_does_not_exist_is_an_error():
    with pytest.raises(_compat.AirflowNotFoundException):
        _ = SageMakerStudioHook("no_such_connection", **GIVEN).settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"domain_id": None}, r"domain_id is missing: give it as argument or as the host of"),
        ({"domain_id": "D-ABC"}, r"domain_id 'D-ABC' is not valid: it must look like 'd-abc123xyz'"),
        ({"domain_id": "d-abc123 "}, r"domain_id 'd-abc123 ' is not valid"),
        ({"domain_id": "d-" + "a" * 62}, r"at most 63 characters"),
        ({"user_profile_name": None}, r"user_profile_name is missing: give it as argument or as the login of"),
        ({"user_profile_name": "jane.doe"}, r"user_profile_name 'jane\.doe' is not valid"),
        ({"space_name": None}, r"space_name is missing: give it as argument or as the extra of"),
        ({"space_name": "-lab"}, r"space_name '-lab' is not valid"),
        ({"space_name": "lab\n"}, r"space_name 'lab\\n' is not valid"),
        ({"app_type": "CodeEditor"}, r"app_type 'CodeEditor' is not known: use 'JupyterLab'"),
        ({"app_type": "JupyterServer"}, r"space_name 'lab' cannot be used with app_type 'JupyterServer'.*Remove"),
    ],
)
def test_wrong_settings_are_told_with_field_and_remedy(wrong, message):
    with pytest.raises(InvalidInputError, match=message):
        SageMakerStudioHook(**{**GIVEN, **wrong}).get_studio()


def test_an_identifier_of_another_type_is_refused(connection):
    conn_id = connection(host="d-conn", login="joe", extra={"space_name": 12})
    with pytest.raises(InvalidInputError, match="space_name 12 is not valid"):
        _ = SageMakerStudioHook(conn_id).settings


# --- clients


def test_nothing_is_looked_up_or_checked_before_first_use():
    hook = SageMakerStudioHook("no_such_connection", domain_id="not a domain")
    assert pickle.loads(pickle.dumps(hook)).studio_conn_id == "no_such_connection"


def test_studio_gets_the_settings(studio_class):
    hook = SageMakerStudioHook(**GIVEN, region_name="ap-south-1")
    assert hook.get_studio() is studio_class.return_value
    assert hook.get_conn() is hook.get_studio()
    studio_class.assert_called_once()
    args, kwargs = studio_class.call_args
    assert args[0].meta.service_model.service_name == "sagemaker"
    assert args[0].meta.region_name == "ap-south-1"
    s3_client = kwargs.pop("s3_client_factory")()
    assert s3_client.meta.service_model.service_name == "s3"
    assert kwargs.pop("on_secret") is _secrets.mask_login
    assert kwargs == {**GIVEN, "app_type": "JupyterLab", "verify": True, "region_name": "ap-south-1"}


def test_classic_studio_has_no_space(studio_class):
    SageMakerStudioHook(domain_id="d-abc", user_profile_name="jane", app_type="JupyterServer").get_studio()
    assert studio_class.call_args.kwargs["space_name"] is None
    assert studio_class.call_args.kwargs["app_type"] == "JupyterServer"


def test_region_is_that_of_the_aws_connection_unless_given(studio_class):
    SageMakerStudioHook(**GIVEN).get_studio()
    assert studio_class.call_args.kwargs["region_name"] == "eu-west-1"


def test_no_region_anywhere_is_told(connection, studio_class):
    aws = connection("bare_aws", "aws", login="AKIA", password="x")
    with pytest.raises(InvalidInputError, match="region of the Studio domain is not known: set region_name"):
        SageMakerStudioHook(**GIVEN, aws_conn_id=aws).get_studio()
    studio_class.assert_not_called()


def test_endpoint_of_the_aws_connection_is_used(connection, studio_class):
    aws = connection(
        "endpoint_aws",
        "aws",
        login="AKIA",
        password="x",
        extra={
            "region_name": "eu-west-1",
            "service_config": {
                "sagemaker": {"endpoint_url": "http://127.0.0.1:9/sm"},
                "s3": {"endpoint_url": "http://127.0.0.1:9/s3"},
            },
        },
    )
    SageMakerStudioHook(**GIVEN, aws_conn_id=aws).get_studio()
    assert studio_class.call_args.args[0].meta.endpoint_url == "http://127.0.0.1:9/sm"
    assert studio_class.call_args.kwargs["s3_client_factory"]().meta.endpoint_url == "http://127.0.0.1:9/s3"


def test_botocore_config_reaches_the_clients(studio_class):
    SageMakerStudioHook(**GIVEN, botocore_config={"read_timeout": 7}).get_studio()
    assert studio_class.call_args.args[0].meta.config.read_timeout == 7
    assert studio_class.call_args.kwargs["s3_client_factory"]().meta.config.read_timeout == 7


def test_without_aws_connection_boto3s_own_chain_is_used(monkeypatch, studio_class):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")
    hook = SageMakerStudioHook(**GIVEN, aws_conn_id=None)
    hook.get_studio()
    assert studio_class.call_args.kwargs["region_name"] == "sa-east-1"
    assert hook.sagemaker_client._request_signer._credentials.access_key == "AKIAFROMENV"


@pytest.mark.parametrize(
    ("argument", "of_connection", "studio_verify"),
    [
        (None, {}, True),
        (True, {}, True),
        (False, {}, True),
        ("/etc/ca.pem", {}, "/etc/ca.pem"),
        (None, {"verify": "/etc/conn-ca.pem"}, "/etc/conn-ca.pem"),
        (None, {"verify": False}, True),
    ],
)
def test_tls_to_studio_is_always_verified(connection, studio_class, argument, of_connection, studio_verify):
    aws = connection(
        "tls_aws", "aws", login="AKIA", password="x", extra={"region_name": "eu-west-1", **of_connection}
    )
    SageMakerStudioHook(**GIVEN, aws_conn_id=aws, verify=argument).get_studio()
    assert studio_class.call_args.kwargs["verify"] == studio_verify


def test_no_secret_in_repr(connection):
    conn_id = connection(host="d-conn", login="joe", password="hush", extra={"space_name": "s"})
    hook = SageMakerStudioHook(conn_id)
    hook.get_studio()
    shown = repr(hook) + repr(hook.settings)
    assert "studio_conn_id='studio'" in shown
    assert "hush" not in shown
    assert "very-secret-key" not in shown


# --- test_connection


@pytest.fixture
def hook(studio_class):
    studio_class.return_value.describe_app.return_value = AppState("InService", None)
    return SageMakerStudioHook(**GIVEN)


@pytest.fixture
def api(hook):
    """Answer the hook's SageMaker API calls; the Stubber checks both sides against AWS's own model."""
    with Stubber(hook.sagemaker_client) as stubber:
        yield stubber


DOMAIN = ("describe_domain", {"DomainId": "d-abc123"})
PROFILE = ("describe_user_profile", {"DomainId": "d-abc123", "UserProfileName": "jane"})
SPACE = ("describe_space", {"DomainId": "d-abc123", "SpaceName": "lab"})


def _answer(api, call, **response):
    api.add_response(call[0], {"Status": "InService", **response}, call[1])


def _refuse(api, call, code="AccessDeniedException", message="not authorized"):
    api.add_client_error(call[0], code, message, 400, expected_params=call[1])


def test_test_connection_tells_all_that_it_found(hook, api):
    _answer(api, DOMAIN, AuthMode="IAM")
    _answer(api, PROFILE)
    _answer(
        api,
        SPACE,
        SpaceSettings={"AppType": "JupyterLab"},
        SpaceSharingSettings={"SharingType": "Private"},
        OwnershipSettings={"OwnerUserProfileName": "jane"},
    )
    assert hook.test_connection() == (
        True,
        "Domain d-abc123 is in service. User profile jane is in service. Space lab is in service. "
        "The space's JupyterLab app is InService",
    )
    api.assert_no_pending_responses()


def test_test_connection_of_classic_looks_at_no_space(studio_class):
    studio_class.return_value.describe_app.return_value = AppState("Pending", None)
    hook = SageMakerStudioHook(domain_id="d-abc123", user_profile_name="jane", app_type="JupyterServer")
    with Stubber(hook.sagemaker_client) as api:
        _answer(api, DOMAIN)
        _answer(api, PROFILE)
        good, text = hook.test_connection()
    assert good
    assert text.endswith("User profile jane is in service. The JupyterServer app is Pending")


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        ("Deleted", None, "The space's JupyterLab app is stopped; start it before a run"),
        ("NotFound", None, "The space's JupyterLab app is stopped; start it before a run"),
        ("Failed", "EC2InsufficientCapacityError", "JupyterLab app is Failed (EC2InsufficientCapacityError)"),
    ],
)
def test_test_connection_tells_the_apps_state(hook, api, studio_class, status, reason, text):
    studio_class.return_value.describe_app.return_value = AppState(status, reason)
    for call in (DOMAIN, PROFILE, SPACE):
        _answer(api, call)
    good, found = hook.test_connection()
    assert good
    assert found.endswith(text)


def test_test_connection_tolerates_that_describing_is_not_permitted(hook, api, studio_class):
    studio_class.return_value.describe_app.side_effect = ControlPlaneError(
        "refused", operation="DescribeApp", code="AccessDeniedException"
    )
    for call in (DOMAIN, PROFILE, SPACE):
        _refuse(api, call)
    good, text = hook.test_connection()
    assert good
    for action in ("DescribeDomain", "DescribeUserProfile", "DescribeSpace", "DescribeApp"):
        assert f"not checked, the credentials lack sagemaker:{action}" in text


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([{"AuthMode": "SSO"}], "logs in with IAM Identity Center"),
        ([{"Status": "Failed", "FailureReason": "no subnet"}], "Domain d-abc123 is Failed: no subnet"),
        ([{}, {"Status": "Deleting"}], "User profile jane is Deleting: no reason given"),
        ([{}, {}, {"SpaceSettings": {"AppType": "CodeEditor"}}], "Space lab is made for CodeEditor"),
        (
            [
                {},
                {},
                {
                    "SpaceSharingSettings": {"SharingType": "Private"},
                    "OwnershipSettings": {"OwnerUserProfileName": "joe"},
                },
            ],
            "Space lab is private to the user profile joe, not to jane",
        ),
    ],
)
def test_test_connection_tells_what_does_not_fit(hook, api, answers, text):
    for call, answer in zip((DOMAIN, PROFILE, SPACE), answers, strict=False):
        _answer(api, call, **answer)
    good, found = hook.test_connection()
    assert not good
    assert text in found


def test_test_connection_tells_which_resource_does_not_exist(hook, api):
    _answer(api, DOMAIN)
    _refuse(api, PROFILE, "ResourceNotFound", "UserProfile does not exist")
    assert hook.test_connection() == (
        False,
        "Domain d-abc123 is in service. User profile jane does not exist in this account and region",
    )


def test_test_connection_fails_with_bad_credentials_and_repeats_no_request(hook, api):
    _refuse(api, DOMAIN, "SignatureDoesNotMatch", "The signature does not match.\nx-amz-security-token:IQoJsecret")
    good, text = hook.test_connection()
    assert not good
    assert "SignatureDoesNotMatch" in text
    assert "IQoJsecret" not in text


def test_test_connection_fails_when_the_app_cannot_be_asked(hook, api, studio_class):
    studio_class.return_value.describe_app.side_effect = ControlPlaneError("throttled", code="ThrottlingException")
    for call in (DOMAIN, PROFILE, SPACE):
        _answer(api, call)
    assert hook.test_connection()[0] is False


def test_test_connection_never_raises():
    good, text = SageMakerStudioHook(domain_id="nonsense").test_connection()
    assert (good, "domain_id 'nonsense' is not valid" in text) == (False, True)
    good, text = SageMakerStudioHook("no_such_connection").test_connection()
    assert (good, "no_such_connection" in text) == (False, True)


def test_test_connection_shows_no_text_of_an_unknown_error(hook, api, studio_class):
    studio_class.return_value.describe_app.side_effect = RuntimeError("https://host/auth?token=eyJhbGci")
    for call in (DOMAIN, PROFILE, SPACE):
        _answer(api, call)
    good, text = hook.test_connection()
    assert (good, "Unexpected RuntimeError" in text, "eyJhbGci" in text) == (False, True, False)


# --- with real parts: a control plane, a front door and a Jupyter server on this machine


@pytest.fixture
def real(lab, connection):
    """A hook whose connection leads to the local Studio, which the environment points boto3 to."""
    extra = {"space_name": lab.space_name, "aws_conn_id": None}
    conn_id = connection(host=lab.domain_id, login=lab.user_profile_name, extra=extra)
    return SageMakerStudioHook(conn_id)


def test_real_studio_of_the_connection_answers(real):
    with closing(real.get_studio()) as studio:
        studio.check_ready()
        assert studio.describe_app().status == "InService"


def test_real_test_connection(real, lab):
    assert real.test_connection() == (
        True,
        "Domain d-localstudio is in service. User profile demo-user is in service. "
        "Space demo-space is in service. The space's JupyterLab app is InService",
    )
    lab.stop_app()
    good, text = real.test_connection()
    assert good
    assert text.endswith("The space's JupyterLab app is stopped; start it before a run")


def test_real_test_connection_of_an_sso_domain(real, lab):
    lab.switches.auth_mode = "SSO"
    good, text = real.test_connection()
    assert (good, "logs in with IAM Identity Center" in text) == (False, True)
