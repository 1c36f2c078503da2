"""The arguments that all operators and the sensor share: which Studio to use, with which AWS credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

STUDIO_TEMPLATE_FIELDS = (
    "studio_conn_id",
    "domain_id",
    "user_profile_name",
    "space_name",
    "app_type",
    "aws_conn_id",
    "region_name",
    "verify",
    "botocore_config",
)
"""The shared arguments. All of them are templated."""


class StudioArguments:
    """Creates the hook of a task from the shared arguments of the task.

    If ``aws_conn_id`` is not given, it is an empty string and not the hook's ``NOTSET``. Airflow before 3.3
    serializes ``NOTSET`` in a template field with its memory address. It would then see a new DAG version at
    each parse.
    """

    studio_conn_id: str | None
    domain_id: str | None
    user_profile_name: str | None
    space_name: str | None
    app_type: str | None
    aws_conn_id: str | None
    region_name: str | None
    verify: bool | str | None
    botocore_config: dict[str, Any] | None

    def make_hook(self) -> SageMakerStudioHook:
        """Return a new hook with the rendered arguments."""
        from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

        return SageMakerStudioHook(**self.hook_arguments())

    def hook_arguments(self) -> dict[str, Any]:
        """Return the rendered arguments of the hook, so that a trigger can create the same hook."""
        return {name: _as_text(getattr(self, name)) for name in STUDIO_TEMPLATE_FIELDS}


def _as_text(value: Any) -> Any:
    """Convert a number back to text: native templates convert names such as ``12345`` to numbers."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
