"""The base of the operators: which Studio to use, with which AWS credentials."""

from __future__ import annotations

from typing import Any

from airflow_provider_smstudio._compat import BaseOperator
from airflow_provider_smstudio._studio_arguments import StudioArguments


class SageMakerStudioBaseOperator(StudioArguments, BaseOperator):
    """The arguments that all operators share. All of them are templated.

    :param studio_conn_id: the connection of type ``sagemaker_studio``. Default: none. Then give all
        settings as arguments.
    :param domain_id: the domain's ID. Default: the value of the Studio connection.
    :param user_profile_name: the user profile to log in as. Default: the value of the Studio connection.
    :param space_name: the space. Default: the value of the Studio connection.
    :param app_type: ``JupyterLab``, or ``JupyterServer`` for Studio Classic. Default: the value of the Studio
        connection, else ``JupyterLab``.
    :param aws_conn_id: the AWS connection; None for boto3's own credential chain. Default (also for an empty
        string): the value of the Studio connection, else ``aws_default``.
    :param region_name: the domain's AWS region. Default: the region of the Studio connection, else that of the AWS
        connection.
    :param verify: how to check the certificates of the AWS API, as in the amazon provider. The path of a CA bundle
        is also used for Studio, but ``False`` is not.
    :param botocore_config: arguments of :class:`botocore.config.Config` for the AWS clients.
    """

    template_fields_renderers = {"botocore_config": "json"}

    def __init__(
        self,
        *,
        studio_conn_id: str | None = None,
        domain_id: str | None = None,
        user_profile_name: str | None = None,
        space_name: str | None = None,
        app_type: str | None = None,
        aws_conn_id: str | None = "",
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
