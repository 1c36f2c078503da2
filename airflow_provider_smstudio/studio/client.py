"""The client's front: one user's Studio app, and notebooks run on it. Needs no Airflow."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_smstudio.studio.app_types import JUPYTER_LAB
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    ControlPlaneError,
    InvalidInputError,
    NotebookNotFoundError,
    StudioError,
)
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer, save_request
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import identity, resume
from airflow_provider_smstudio.studio.runs.abandoned import AbandonedRun, abandoned_runs, remove
from airflow_provider_smstudio.studio.runs.runner import Listener, NotebookRunner
from airflow_provider_smstudio.studio.runs.spec import ON_UNKNOWN_CELL, RESUME, RunSpec
from airflow_provider_smstudio.studio.sagemaker.control_plane import AppState, ControlPlane

log = logging.getLogger(__name__)


class Studio:
    """One user's Studio app: a space's JupyterLab, or Studio Classic's JupyterServer.

    Nothing is called before it is needed. ::

        studio = Studio(boto3.client("sagemaker"), domain_id="d-…", user_profile_name="ana", space_name="reports")
        result = studio.runner(RunSpec("daily.ipynb", parameters={"day": date(2026, 11, 23)})).run()

    :param sagemaker_client: a boto3 client for ``sagemaker``.
    :param domain_id: the domain's id.
    :param user_profile_name: the user profile that logs in.
    :param space_name: the space; left out for Studio Classic.
    :param app_type: ``JupyterLab`` (a space) or ``JupyterServer`` (Studio Classic).
    :param verify: True for the system's certificates, or the path of a CA bundle, for Studio's own host.
    :param s3_client_factory: makes a boto3 client for ``s3``; needed to upload notebooks from there.
    :param region_name: the region, for messages.
    :param session_seconds: life of a login, 1800 to 43200 seconds.
    :param on_secret: told every secret that is met (URLs, cookies), so that it can be masked.
    :raises InvalidInputError: when space and app type do not go together.
    """

    def __init__(
        self,
        sagemaker_client: Any,
        *,
        domain_id: str,
        user_profile_name: str,
        space_name: str | None = None,
        app_type: str = JUPYTER_LAB,
        verify: bool | str = True,
        s3_client_factory: Callable[[], Any] | None = None,
        region_name: str | None = None,
        session_seconds: int = 43200,
        on_secret: Callable[[str], None] | None = None,
    ) -> None:
        self.region_name = region_name
        self.control_plane = ControlPlane(
            sagemaker_client,
            domain_id=domain_id,
            user_profile_name=user_profile_name,
            space_name=space_name,
            app_type=app_type,
        )
        self._s3_client_factory = s3_client_factory
        self.session = StudioSession(
            lambda: self.control_plane.presigned_url(session_seconds),
            app_type,
            verify=verify,
            on_secret=on_secret,
        )
        self.server = JupyterServer(self.session)

    def __repr__(self) -> str:
        return f"<Studio: {self.control_plane.title}>"

    def describe_app(self) -> AppState:
        """Return how the app is; see :meth:`ControlPlane.describe_app`."""
        return self.control_plane.describe_app()

    def check_ready(self) -> AppState | None:
        """See that the app runs and that Jupyter answers behind the login.

        In Studio Classic a login starts the app if it was stopped, as it does in a browser, and Classic's front
        door tells how the app is; the control plane is not asked.

        :return: how the app is, None where that is not known.
        :raises AppNotReadyError: while it is not ready; ``status`` says how it is, where known.
        :raises AppFailedError: when it will not become ready by itself.
        :raises StudioError: for what else goes wrong.
        """
        state = None if self.server.classic else self.control_plane.require_running()
        try:
            self.session.renew()
        except AppFailedError as error:
            raise self._with_reason(error) from error
        return state

    def _with_reason(self, error: AppFailedError) -> AppFailedError:
        """Add the service's reason to what Classic's front door says, if the role may see it."""
        try:
            reason = self.describe_app().failure_reason
        except ControlPlaneError:
            reason = None
        if not reason:
            return error
        fields = {**error.fields, "failure_reason": reason}
        return AppFailedError(f"{error}: {reason}", **fields)

    def runner(
        self,
        spec: RunSpec,
        *,
        listener: Listener | None = None,
        on_output: Callable[[str], None] | None = None,
        leaves_run: Callable[[], bool] | None = None,
        try_follows: Callable[[StudioError], bool] | None = None,
    ) -> NotebookRunner:
        """Prepare the run of a notebook: check the app, upload the notebook if the spec says so.

        :param spec: what to run.
        :param listener: told every event of the run.
        :param on_output: told the executed notebook's path once it exists.
        :param leaves_run: whether the run is left to another process when this one has to end; see
            :class:`~airflow_provider_smstudio.studio.runs.runner.NotebookRunner`.
        :param try_follows: whether another try follows after an error; see there.
        :return: call its ``run()``; its ``stop()`` ends the run from a signal handler or another thread.
        """
        _check_spec(spec)
        state = self.check_ready()
        if spec.upload_from:
            self.upload(spec.upload_from, spec.notebook_path)
        where = state.instance_type if state else None
        return NotebookRunner(
            self.server,
            spec,
            listener=listener,
            on_output=on_output,
            where=where,
            leaves_run=leaves_run,
            try_follows=try_follows,
        )

    def remove_run(self, spec: RunSpec) -> None:
        """Remove the kernel that a run has left for its next try, where none follows.

        :param spec: the run's; its ``run_key`` and notebook tell which one.
        :raises StudioError: when it could not be removed.
        """
        resume.remove_session(self.server, spec, identity.identity_of(spec.run_key, spec.run_name))

    def upload(self, source: str, notebook_path: str) -> None:
        """Copy a notebook into the Studio home, over what is there; missing folders are created.

        :param source: a path of a local file, or an ``s3://bucket/key`` URL.
        :param notebook_path: where to, below the Studio home.
        :raises NotebookNotFoundError: when the source does not exist.
        :raises NotANotebookError: when it is no notebook.
        """
        path = nb.clean_path(notebook_path, "notebook_path")
        text = self._read_s3(source) if source.startswith("s3://") else _read_file(source)
        notebook = nb.read(text, source)
        self.server.make_folders(posixpath.dirname(path))
        self.server.write_notebook(path, save_request(notebook))
        log.info("uploaded %s to %s", source, path)

    def remove_abandoned_runs(self, older_than_hours: float, *, dry_run: bool = False) -> list[AbandonedRun]:
        """Remove the kernels of runs that nobody came back to, found by the paths of our own sessions.

        A worker that is killed without a word leaves its kernel to the next try; where none comes, it stays.
        Sessions of people and of other programs are never touched. See :func:`abandoned.abandoned_runs`.

        :param older_than_hours: for how long a run must have been left alone, in hours.
        :param dry_run: remove nothing, only tell.
        :return: the runs.
        :raises InvalidInputError: when the time is no positive number.
        """
        runs = abandoned_runs(self.server, older_than_hours)
        if runs and not dry_run:
            remove(self.server, runs)
        return runs

    def close(self) -> None:
        """Close the connections."""
        self.session.close()

    def _read_s3(self, url: str) -> str:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise InvalidInputError(f"upload_from {url!r} must have the form s3://bucket/key")
        if self._s3_client_factory is None:
            raise InvalidInputError("no s3_client_factory was given, so nothing can be read from S3")
        client = self._s3_client_factory()
        try:
            return str(client.get_object(Bucket=bucket, Key=key)["Body"].read().decode())
        except UnicodeDecodeError:
            raise InvalidInputError(f"{url!r} is no text, so no notebook") from None
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "Unknown")
            if code in ("NoSuchKey", "NoSuchBucket", "404"):
                raise NotebookNotFoundError(f"there is no {url!r} in S3: {code}", path=url) from None
            raise ControlPlaneError(
                f"{url!r} could not be read from S3: {code}. The role needs s3:GetObject for it",
                operation="GetObject",
                code=code,
            ) from None
        except BotoCoreError as error:
            raise ControlPlaneError(
                f"{url!r} could not be read from S3: {error}", operation="GetObject", code=type(error).__name__
            ) from None


def _read_file(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{source!r} is no text, so no notebook") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotebookNotFoundError(
            f"{source!r} could not be read on this worker: {reason}", path=source
        ) from None


def _check_spec(spec: RunSpec) -> None:
    """Refuse what is wrong whatever the notebook, before anything is called."""
    nb.clean_path(spec.notebook_path, "notebook_path")
    if spec.output_path is not None:
        nb.clean_path(spec.output_path, "output_path")
    for name, choices in (("resume", RESUME), ("on_unknown_cell", ON_UNKNOWN_CELL)):
        if getattr(spec, name) not in choices:
            wanted = ", ".join(map(repr, choices))
            raise InvalidInputError(f"{name} must be one of {wanted}, not {getattr(spec, name)!r}")
    if isinstance(spec.record_mib, bool) or not isinstance(spec.record_mib, (int, float)) or spec.record_mib < 0:
        raise InvalidInputError(f"record_mib must be a number of MiB, not {spec.record_mib!r}")
    for name in ("cell_timeout", "kernel_start_timeout", "reconnect_timeout"):
        value = getattr(spec, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise InvalidInputError(f"{name} must be a positive number of seconds, not {value!r}")
    if not isinstance(spec.parameters, Mapping):
        raise InvalidInputError(f"parameters must be a dict, not {type(spec.parameters).__name__}")
