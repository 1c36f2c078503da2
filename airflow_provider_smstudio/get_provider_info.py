"""The metadata of this provider, which Airflow reads through the ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import Any

from airflow_provider_smstudio.studio.app_types import APP_TYPES, JUPYTER_LAB

_INTEGRATION = "Amazon SageMaker Studio"

# The keys are those of Airflow's provider_info.schema.json. Airflow 3.2+ builds the connection form from
# `ui-field-behaviour` and `conn-fields` and does not import the hook. Older versions call the hook's class
# methods, which return the same form from this dict. Airflow stores `conn-fields` in the connection's extra.
_CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "sagemaker_studio",
    "hook-class-name": "airflow_provider_smstudio.hooks.studio.SageMakerStudioHook",
    "hook-name": "Amazon SageMaker Studio",
    "ui-field-behaviour": {
        "hidden-fields": ["port", "schema", "password"],
        "relabeling": {"host": "Domain ID", "login": "User profile name"},
        "placeholders": {"host": "d-xxxxxxxxxxxx", "login": "ana"},
    },
    "conn-fields": {
        "space_name": {
            "label": "Space name",
            "description": "The JupyterLab space that runs the notebooks. Leave empty for Studio Classic.",
            "schema": {"type": ["string", "null"]},
        },
        "app_type": {
            "label": "App type",
            "description": "JupyterLab: the app of a space. JupyterServer: Studio Classic, per user profile.",
            "schema": {"type": "string", "enum": [*APP_TYPES], "default": JUPYTER_LAB},
        },
        "region_name": {
            "label": "AWS region",
            "description": "Region of the domain. Leave empty for the region of the AWS connection or of boto3.",
            "schema": {"type": ["string", "null"]},
        },
        "aws_conn_id": {
            "label": "AWS connection",
            "description": "Airflow connection with the AWS credentials.",
            "schema": {"type": ["string", "null"], "default": "aws_default"},
        },
    },
}

# With this, Airflow checks the URI of a notebook in a DAG, and OpenLineage reports such assets for any task.
_ASSET_URIS: list[dict[str, Any]] = [
    {
        "schemes": ["sagemaker-studio"],
        "handler": "airflow_provider_smstudio.assets.sanitize_uri",
        "to_openlineage_converter": "airflow_provider_smstudio.assets.convert_asset_to_openlineage",
    }
]


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in a form that is valid on Airflow 2.11 to 3.3."""
    return {
        "package-name": "airflow-provider-smstudio",
        "name": "SageMaker Studio notebooks",
        "description": "Run SageMaker Studio notebooks, cell by cell, on the user's own Studio.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.aws.amazon.com/sagemaker/latest/dg/studio-updated.html",
                "tags": ["aws"],
            }
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_provider_smstudio.operators.app",
                    "airflow_provider_smstudio.operators.cleanup",
                    "airflow_provider_smstudio.operators.notebook",
                ],
            }
        ],
        "sensors": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_provider_smstudio.sensors.app"]}
        ],
        "hooks": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_provider_smstudio.hooks.studio"]}
        ],
        "connection-types": [_CONNECTION_TYPE],
        "triggers": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_provider_smstudio.triggers.app",
                    "airflow_provider_smstudio.triggers.app_change",
                    "airflow_provider_smstudio.triggers.notebook",
                ],
            }
        ],
        "asset-uris": _ASSET_URIS,
        "dataset-uris": _ASSET_URIS,  # the name in 2.11
        "extra-links": ["airflow_provider_smstudio.links.notebook.SageMakerStudioNotebookLink"],
    }
