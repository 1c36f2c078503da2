"""The button that opens the executed notebook in Studio."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_smstudio._compat import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow_provider_smstudio._compat import BaseOperator, Context


class SageMakerStudioNotebookLink(BaseOperatorLink):
    """Opens the executed notebook in the Studio that runs it.

    :meth:`persist` stores the URL when the run starts, so that the button works while the task is still running.
    Airflow 3 reads the XCom :data:`XCOM_KEY` directly, and fills it from :meth:`get_link` only after the task.
    Airflow 2 calls :meth:`get_link` whenever it shows the task.
    """

    name = "Executed notebook"

    #: The key of the XCom from which Airflow 3 reads the URL of this link.
    XCOM_KEY = "_link_SageMakerStudioNotebookLink"

    @classmethod
    def persist(cls, context: Context, url: str) -> None:
        """Store the URL for the button.

        :param context: the context of the running task instance.
        :param url: the URL, as ``JupyterServer.output_url`` returns it.
        :raises ValueError: if the URL has a query, a fragment or a password. A presigned URL has a query, and
            every user who can see the task could log in with it.
        """
        parts = urlsplit(url)
        if "?" in url or "#" in url or parts.username or parts.password:
            raise ValueError(
                "The link to the executed notebook must be a plain URL without query, fragment or login; "
                f"refused the URL to {parts.hostname}{parts.path}"
            )
        context["ti"].xcom_push(key=cls.XCOM_KEY, value=url)

    def get_link(self, operator: BaseOperator, *, ti_key: object) -> str:
        """Return the stored URL, or an empty string (no button) if the run has not started.

        :param operator: the task's operator (not used).
        :param ti_key: the key of the task instance.
        """
        return XCom.get_value(ti_key=ti_key, key=self.XCOM_KEY) or ""
