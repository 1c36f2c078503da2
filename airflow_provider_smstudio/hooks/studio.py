"""The hook that creates the client of one Studio from Airflow's connections."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio._compat import NOTSET, ArgNotSet, BaseHook
from airflow_provider_smstudio._secrets import mask_login
from airflow_provider_smstudio.get_provider_info import get_provider_info
from airflow_provider_smstudio.studio.app_types import APP_TYPES, DOMAIN_ID, JUPYTER_LAB, NAME
from airflow_provider_smstudio.studio.errors import InvalidInputError

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

    from airflow_provider_smstudio.studio.client import Studio

_MAX_LENGTH = 63


@dataclass(frozen=True)
class StudioSettings:
    """Which Studio to use, with which AWS credentials: the arguments and the connection combined.

    :ivar domain_id: the domain's ID, such as ``d-abc123``.
    :ivar user_profile_name: the user profile to log in as.
    :ivar space_name: the JupyterLab space; None for Classic.
    :ivar app_type: ``JupyterLab`` or ``JupyterServer`` (Classic).
    :ivar aws_conn_id: the AWS connection; None for boto3's own credential chain.
    :ivar region_name: the AWS region; None for the region of the AWS connection.
    """

    domain_id: str
    user_profile_name: str
    space_name: str | None
    app_type: str
    aws_conn_id: str | None
    region_name: str | None


class SageMakerStudioHook(BaseHook):
    """Creates the client of one user's Studio from Airflow's connections.

    The hook reads, imports and calls nothing before its first use. An argument takes precedence over the field of
    the Studio connection. An empty string counts as not given, because a template may return it. With
    ``studio_conn_id=None`` the hook looks up no Studio connection.

    :param studio_conn_id: the connection of type ``sagemaker_studio``. Its host is the domain's ID, and its login
        is the user profile's name. Its extra may contain ``space_name``, ``app_type``, ``region_name`` and
        ``aws_conn_id``.
    :param domain_id: the domain's ID, such as ``d-abc123``.
    :param user_profile_name: the user profile to log in as.
    :param space_name: the space whose JupyterLab app is used. Required for JupyterLab, refused for Studio Classic.
    :param app_type: ``JupyterLab`` (default), or ``JupyterServer`` for Studio Classic.
    :param aws_conn_id: the AWS connection that the SageMaker and S3 clients use; None for boto3's own
        credential chain. Default: the value of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region. Default: the region of the Studio connection, else that of the AWS
        connection, else boto3's.
    :param verify: how to check the certificates of the AWS API, as in the amazon provider. The path of a CA bundle
        is also used for Studio, but ``False`` is not: there TLS is always verified.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients.
    """

    conn_name_attr = "studio_conn_id"
    default_conn_name = "sagemaker_studio_default"
    conn_type = "sagemaker_studio"
    hook_name = "Amazon SageMaker Studio"

    def __init__(
        self,
        studio_conn_id: str | None = None,
        *,
        domain_id: str | None = None,
        user_profile_name: str | None = None,
        space_name: str | None = None,
        app_type: str | None = None,
        aws_conn_id: str | None | ArgNotSet = NOTSET,
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.studio_conn_id = studio_conn_id
        self.domain_id = domain_id
        self.user_profile_name = user_profile_name
        self.space_name = space_name
        self.app_type = app_type
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(studio_conn_id={self.studio_conn_id!r}, domain_id={self.domain_id!r}, "
            f"user_profile_name={self.user_profile_name!r}, space_name={self.space_name!r})"
        )

    @cached_property
    def settings(self) -> StudioSettings:
        """The arguments and the connection, combined and checked.

        :raises AirflowNotFoundException: if there is no such Studio connection.
        :raises InvalidInputError: if a field is missing or malformed, or cannot be used with the app type.
        """
        fields: dict[str, Any] = {}
        if self.studio_conn_id:
            connection = self.get_connection(self.studio_conn_id)
            fields = {**connection.extra_dejson}
            fields["domain_id"] = connection.host
            fields["user_profile_name"] = connection.login
        settings = StudioSettings(
            domain_id=self.domain_id or fields.get("domain_id") or "",
            user_profile_name=self.user_profile_name or fields.get("user_profile_name") or "",
            space_name=self.space_name or fields.get("space_name") or None,
            app_type=self.app_type or fields.get("app_type") or JUPYTER_LAB,
            aws_conn_id=self._aws_conn_id(fields),
            region_name=self.region_name or fields.get("region_name") or None,
        )
        self._check(settings)
        return settings

    def _aws_conn_id(self, fields: dict[str, Any]) -> str | None:
        for given in (self.aws_conn_id, fields.get("aws_conn_id", NOTSET)):
            if given is None:
                return None
            if given and not isinstance(given, ArgNotSet):
                return str(given)
        return "aws_default"

    def _check(self, settings: StudioSettings) -> None:
        """Refuse settings that AWS would refuse, before any call.

        :raises InvalidInputError: with the field, its value and the remedy.
        """
        where = f"the connection {self.studio_conn_id!r}" if self.studio_conn_id else "a Studio connection"
        _check_name("domain_id", settings.domain_id, DOMAIN_ID, "d-abc123xyz", f"host of {where}")
        _check_name("user_profile_name", settings.user_profile_name, NAME, "jane-doe", f"login of {where}")
        app = APP_TYPES.get(settings.app_type)
        if app is None:
            raise InvalidInputError(
                f"app_type {settings.app_type!r} is not known: use {' or '.join(map(repr, APP_TYPES))}, as "
                f"argument or in the extra of {where}"
            )
        if app.needs_space:
            _check_name("space_name", settings.space_name or "", NAME, "my-space", f"extra of {where}")
        elif settings.space_name:
            raise InvalidInputError(
                f"space_name {settings.space_name!r} cannot be used with app_type {app.name!r}: Studio "
                f"Classic has one app per user profile. Remove space_name from the arguments and from the extra "
                f"of {where}, or use app_type {JUPYTER_LAB!r}"
            )

    def aws_hook(self, client_type: str) -> AwsGenericHook[Any]:
        """Return the amazon provider's hook for one AWS service.

        It applies the roles, sessions, endpoints and service config of the AWS connection.

        :param client_type: the boto3 client's name, such as ``sagemaker``.
        """
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

        return AwsBaseHook(
            aws_conn_id=self.settings.aws_conn_id,
            client_type=client_type,
            region_name=self.settings.region_name,
            verify=self.verify,
            config=self.botocore_config,
        )

    @cached_property
    def _sagemaker_hook(self) -> AwsGenericHook[Any]:
        return self.aws_hook("sagemaker")

    @property
    def sagemaker_client(self) -> Any:
        """The boto3 client of the SageMaker API.

        :raises InvalidInputError: if the settings are not valid, or no AWS region is known.
        """
        return _client(self._sagemaker_hook)

    @cached_property
    def studio(self) -> Studio:
        """The client of the user's Studio, created once per hook. Its creation calls nothing.

        :raises AirflowNotFoundException: if there is no such Studio connection.
        :raises InvalidInputError: if the settings are not valid.
        """
        # Airflow masks a login that a library or a notebook prints, up to the limit in _secrets.
        return self.make_studio(on_secret=mask_login)

    def make_studio(self, *, on_secret: Callable[[str], None]) -> Studio:
        """Create another client of the user's Studio. The caller closes it.

        :param on_secret: receives every secret (URLs, cookies), so that it can be masked.
        :raises AirflowNotFoundException: if there is no such Studio connection.
        :raises InvalidInputError: if the settings are not valid.
        """
        from airflow_provider_smstudio.studio.client import Studio

        settings = self.settings
        verify = self._sagemaker_hook.verify
        return Studio(
            self.sagemaker_client,
            domain_id=settings.domain_id,
            user_profile_name=settings.user_profile_name,
            space_name=settings.space_name,
            app_type=settings.app_type,
            # verify=False for the AWS API must not expose Studio's login, so only a CA bundle is used for Studio.
            verify=verify if isinstance(verify, str) else True,
            s3_client_factory=lambda: _client(self.aws_hook("s3")),
            region_name=self.sagemaker_client.meta.region_name,
            on_secret=on_secret,
        )

    def get_studio(self) -> Studio:
        """Return the client of the user's Studio, the same on each call. The caller closes it.

        :raises AirflowNotFoundException: if there is no such Studio connection.
        :raises InvalidInputError: if the settings are not valid, or no AWS region is known.
        """
        return self.studio

    def get_conn(self) -> Studio:
        """Return the client of the user's Studio, as :meth:`get_studio`."""
        return self.studio

    def test_connection(self) -> tuple[bool, str]:
        """Check the settings, the credentials, and the domain, user profile, space and app if permitted.

        The check starts nothing and does not log in. It reports a missing permission, but not as a failure: a run
        needs only ``sagemaker:CreatePresignedDomainUrl``.

        :return: True if no check has failed, and all findings as one text.
        """
        from airflow_provider_smstudio.hooks._connection_check import check_connection

        return check_connection(self)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how Airflow before 3.2 shows the standard fields of the connection form."""
        behaviour = _connection_type()["ui-field-behaviour"]
        return {key.replace("-", "_"): value for key, value in behaviour.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the extra fields of the connection form in Airflow before 3.2."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import StringField
        from wtforms.validators import Optional, any_of

        widgets = {}
        for name, field in _connection_type()["conn-fields"].items():
            schema = field["schema"]
            widgets[name] = StringField(
                lazy_gettext(field["label"]),
                widget=BS3TextFieldWidget(),
                description=field["description"],
                default=schema.get("default"),
                validators=[Optional(), *([any_of(schema["enum"])] if "enum" in schema else [])],
            )
        return widgets


def _client(aws_hook: AwsGenericHook[Any]) -> Any:
    """Return the boto3 client of an AWS hook, which creates it once.

    :raises InvalidInputError: if no AWS region is known.
    """
    from botocore.exceptions import NoRegionError

    try:
        return aws_hook.get_conn()
    except NoRegionError as err:
        raise InvalidInputError(
            "The AWS region of the Studio domain is not known: set region_name as argument, in the extra "
            "of the Studio connection or of the AWS connection, or AWS_DEFAULT_REGION on the worker"
        ) from err


def _connection_type() -> dict[str, Any]:
    connection_type: dict[str, Any] = get_provider_info()["connection-types"][0]
    return connection_type


def _check_name(field: str, value: object, pattern: re.Pattern[str], example: str, place: str) -> None:
    """Refuse an identifier that the SageMaker API would refuse.

    :raises InvalidInputError: if it is missing or malformed.
    """
    if not value:
        raise InvalidInputError(f"{field} is missing: give it as argument or as the {place}")
    if not isinstance(value, str) or len(value) > _MAX_LENGTH or not pattern.fullmatch(value):
        raise InvalidInputError(
            f"{field} {value!r} is not valid: it must look like {example!r} (at most {_MAX_LENGTH} "
            f"characters, pattern {pattern.pattern}). It is taken from the argument or from the {place}"
        )
