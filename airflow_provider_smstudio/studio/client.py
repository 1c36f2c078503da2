"""The client's main class: one user's Studio app, and the runs of notebooks on it. It needs no Airflow."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_smstudio.studio.app_types import JUPYTER_LAB
from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    CellError,
    ControlPlaneError,
    InvalidInputError,
    NotebookNotFoundError,
    StudioError,
)
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer, save_request
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.runs import identity, resume, saved_run
from airflow_provider_smstudio.studio.runs.abandoned import AbandonedRun, abandoned_runs, remove
from airflow_provider_smstudio.studio.runs.runner import Listener, NotebookRunner
from airflow_provider_smstudio.studio.runs.spec import RunSpec
from airflow_provider_smstudio.studio.sagemaker.control_plane import AppState, ControlPlane

log = logging.getLogger(__name__)


class Studio:
    """One user's Studio app: a space's JupyterLab, or Studio Classic's JupyterServer.

    The client sends no request before it needs the answer. ::

        studio = Studio(boto3.client("sagemaker"), domain_id="d-…", user_profile_name="ana", space_name="reports")
        result = studio.runner(RunSpec("daily.ipynb", parameters={"day": date(2026, 11, 23)})).run()

    :param sagemaker_client: a boto3 client for ``sagemaker``.
    :param domain_id: the domain's id.
    :param user_profile_name: the user profile that logs in.
    :param space_name: the space; leave it out for Studio Classic.
    :param app_type: ``JupyterLab`` (a space) or ``JupyterServer`` (Studio Classic).
    :param verify: True for the system's certificates, or the path of a CA bundle, for Studio's own host.
    :param s3_client_factory: returns a boto3 client for ``s3``. It is needed to upload notebooks from S3.
    :param region_name: the AWS region, for messages.
    :param session_seconds: lifetime of a login, 1800 to 43200 seconds.
    :param on_secret: called with every secret that the client receives (URLs, cookies), so that you can mask it.
    :raises InvalidInputError: if the space and the app type do not match.
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
        """Return the app's state; see :meth:`ControlPlane.describe_app`."""
        return self.control_plane.describe_app()

    def check_ready(self) -> AppState | None:
        """Check that the app runs, and that Jupyter answers after the login.

        In Studio Classic a login starts a stopped app, as it does in a browser. Classic's gateway then reports the
        app's status. The SageMaker API is not asked.

        :return: the app's state; None if it is not known.
        :raises AppNotReadyError: if the app is not ready; ``status`` is its status, if known.
        :raises AppFailedError: if the app will not become ready by itself.
        :raises StudioError: for any other error.
        """
        state = None if self.server.classic else self.control_plane.require_running()
        try:
            self.session.renew()
        except AppFailedError as error:
            raise self._with_reason(error) from error
        return state

    def _with_reason(self, error: AppFailedError) -> AppFailedError:
        """Add SageMaker's reason to the error of Classic's gateway, if the role may read the reason."""
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
        """Prepare the run of a notebook: check the app, and upload the notebook if the spec says so.

        :param spec: the notebook, and how to run it.
        :param listener: called with every event of the run.
        :param on_output: called with the executed notebook's path once it exists.
        :param leaves_run: returns whether the run is left to another process when this process must end; see
            :class:`~airflow_provider_smstudio.studio.runs.runner.NotebookRunner`.
        :param try_follows: returns whether a retry follows after an error; see the same class.
        :return: the runner. Its ``run()`` runs the notebook. Its ``stop()`` ends the run from a signal handler or
            from another thread.
        """
        spec.check()
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
        """Remove the kernel that a run has left for a retry, if no retry follows.

        A failed removal is logged.

        :param spec: the run's spec. Its ``run_key`` and its notebook identify the kernel.
        :raises StudioError: if the Jupyter server could not be asked.
        """
        resume.remove_session(self.server, spec, identity.identity_of(spec.run_key, spec.run_name))

    def full_error(self, error: CellError) -> StudioError:
        """Return the error of a cell with its source and traceback, from the executed notebook.

        :param error: the error as a trigger has sent it, with its summary only.
        :return: the full error; ``error`` itself if the executed notebook has none.
        :raises StudioError: if the executed notebook could not be read.
        """
        found = saved_run.error_of(self.server.read_executed(str(error.output_path)))
        if not isinstance(found, CellError):
            return error
        found.fields["output_path"] = found.output_path = error.output_path
        return found

    def upload(self, source: str, notebook_path: str) -> None:
        """Copy a notebook into the Studio home. An existing file is replaced, and missing folders are created.

        :param source: the path of a local file, or an ``s3://bucket/key`` URL.
        :param notebook_path: the target path, below the Studio home.
        :raises NotebookNotFoundError: if the source does not exist, or if the local file cannot be read.
        :raises NotANotebookError: if the source is not a notebook.
        """
        path = nb.clean_path(notebook_path, "notebook_path")
        text = self._read_s3(source) if source.startswith("s3://") else _read_file(source)
        notebook = nb.read(text, source)
        self.server.make_folders(posixpath.dirname(path))
        self.server.write_notebook(path, save_request(notebook))
        log.info("uploaded %s to %s", source, path)

    def remove_abandoned_runs(self, older_than_hours: float, *, dry_run: bool = False) -> list[AbandonedRun]:
        """Remove the kernels of abandoned runs, found by the paths of the package's own Jupyter sessions.

        A worker that is killed without warning leaves its kernel for a retry. If no retry follows, the kernel
        stays. This method never removes sessions of users or of other programs. See
        :func:`abandoned.abandoned_runs`.

        :param older_than_hours: how long a run must have been abandoned, in hours.
        :param dry_run: return the runs, but remove nothing.
        :return: the abandoned runs.
        :raises InvalidInputError: if the time is not a positive number.
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
            raise InvalidInputError("no s3_client_factory was given, so the client cannot read from S3")
        client = self._s3_client_factory()
        try:
            return str(client.get_object(Bucket=bucket, Key=key)["Body"].read().decode())
        except UnicodeDecodeError:
            raise InvalidInputError(f"{url!r} is not UTF-8 text, so it is not a notebook") from None
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
        raise InvalidInputError(f"{source!r} is not UTF-8 text, so it is not a notebook") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotebookNotFoundError(
            f"{source!r} could not be read on this worker: {reason}", path=source
        ) from None
