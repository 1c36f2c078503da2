from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import pytest

from airflow_provider_smstudio import _compat
from airflow_provider_smstudio.links import notebook
from airflow_provider_smstudio.links.notebook import SageMakerStudioNotebookLink
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from tests.provider.running import context_with

LAB = "https://abc123.studio.eu-west-1.sagemaker.aws/jupyterlab/default"
CLASSIC = "https://d-abc.studio.eu-west-1.sagemaker.aws/jupyter/default"


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        (LAB, "out/report.ipynb", f"{LAB}/lab/tree/out/report.ipynb"),
        (CLASSIC, "report.ipynb", f"{CLASSIC}/lab/tree/report.ipynb"),
        (LAB, "a b/100%?#ä.ipynb", f"{LAB}/lab/tree/a%20b/100%25%3F%23%C3%A4.ipynb"),
    ],
)
def test_url_of_the_executed_notebook_may_be_stored(base, path, url):
    session = create_autospec(StudioSession, instance=True, base_url=base)
    assert JupyterServer(session).output_url(path) == url
    ti = Mock(spec_set=["xcom_push"])
    SageMakerStudioNotebookLink.persist(context_with(ti), url)


def test_persist_pushes_the_key_that_airflow_3_reads():
    ti = Mock(spec_set=["xcom_push"])
    SageMakerStudioNotebookLink.persist(context_with(ti), f"{LAB}/lab/tree/x.ipynb")
    ti.xcom_push.assert_called_once_with(key="_link_SageMakerStudioNotebookLink", value=f"{LAB}/lab/tree/x.ipynb")
    # Airflow 3 names the key after the class; 2.11 has no such property.
    own_key = getattr(SageMakerStudioNotebookLink(), "xcom_key", SageMakerStudioNotebookLink.XCOM_KEY)
    assert own_key == SageMakerStudioNotebookLink.XCOM_KEY


@pytest.mark.parametrize(
    "url",
    [
        "https://abc123.studio.eu-west-1.sagemaker.aws/auth?token=eyJhbGci",
        f"{LAB}/lab/tree/x.ipynb?",
        f"{LAB}/lab/tree/x.ipynb#token=eyJhbGci",
        "https://user:eyJhbGci@abc123.studio.eu-west-1.sagemaker.aws/x.ipynb",
    ],
)
def test_persist_refuses_an_address_that_may_hold_a_token(url):
    ti = Mock(spec_set=["xcom_push"])
    with pytest.raises(ValueError, match="plain URL") as raised:
        SageMakerStudioNotebookLink.persist(context_with(ti), url)
    assert "eyJhbGci" not in str(raised.value)
    ti.xcom_push.assert_not_called()


@pytest.mark.parametrize(("stored", "link"), [(f"{LAB}/lab/tree/x.ipynb", f"{LAB}/lab/tree/x.ipynb"), (None, "")])
def test_get_link_reads_what_persist_stored(monkeypatch, stored, link):
    xcom = create_autospec(_compat.XCom)
    xcom.get_value.return_value = stored
    monkeypatch.setattr(notebook, "XCom", xcom)
    key = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    found = SageMakerStudioNotebookLink()
    assert found.get_link(None, ti_key=key) == link  # type: ignore[arg-type]  # no operator is asked
    xcom.get_value.assert_called_once_with(ti_key=key, key="_link_SageMakerStudioNotebookLink")


def test_the_link_has_a_name():
    assert SageMakerStudioNotebookLink().name == "Executed notebook"
