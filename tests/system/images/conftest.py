"""Tests against the Jupyter server of one image: ``make test-image IMAGE=4.3.2``; ordinary runs do not collect them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio.jupyter import kernel_probe
from airflow_provider_smstudio.studio.runs import runner
from tests.helpers.bench import Bench, client_of
from tests.helpers.image_bench import hurry_all
from tests.helpers.workers import worker  # noqa: F401  # a fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("images")
    group.addoption("--server-python", help="the Python of an image's environment")
    group.addoption("--space-kind", default="private", help="private or shared")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ci: one of the scenarios that CI runs on a few images")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("--server-python", None) else True


@pytest.fixture(scope="session")
def local_studio(request: pytest.FixtureRequest) -> Iterator[LocalStudio]:
    """A Studio whose server is the image's; one for the whole test run."""
    python, kind = (request.config.getoption(name) for name in ("--server-python", "--space-kind"))
    with LocalStudio(server_python=python, space_kind=kind) as studio:
        yield studio


@pytest.fixture
def bench(local_studio: LocalStudio) -> Iterator[Bench]:
    """A client and a folder of its own; at the end nothing of ours is left on the server."""
    bench = Bench(local_studio, client_of(local_studio), f"t{uuid.uuid4().hex[:8]}")
    yield bench
    bench.studio.close()
    try:
        assert local_studio.app_status == "InService"
        bench.assert_clean()
    except AssertionError:
        local_studio.start_app()
        local_studio.restart_server()  # what is left here must not fail the next test
        raise


@pytest.fixture(autouse=True)
def replaced_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a kernel that answers nothing after seconds: about one in 200 with jupyter_server_documents 0.2."""
    monkeypatch.setattr(runner, "_MUTE_LIMIT", 15.0)
    monkeypatch.setattr(kernel_probe, "_MUTE_LIMIT", 5.0)


@pytest.fixture
def impatient(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A client that notices within seconds what it else notices within minutes."""
    hurry_all(monkeypatch)
    return bench
