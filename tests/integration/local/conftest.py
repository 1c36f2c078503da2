from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio, Switches
from tests.helpers.browser import Browser


def _reset(studio: LocalStudio) -> None:
    for name, value in vars(Switches()).items():
        if not name.startswith("_"):
            setattr(studio.switches, name, value)
    studio.start_app()


@pytest.fixture
def spaces(local_studio: LocalStudio) -> Iterator[LocalStudio]:
    """New Studio, its app InService and its switches as by default."""
    yield local_studio
    _reset(local_studio)


@pytest.fixture
def classic(local_studio_classic: LocalStudio) -> Iterator[LocalStudio]:
    """Studio Classic, its app InService and its switches as by default."""
    yield local_studio_classic
    _reset(local_studio_classic)


@pytest.fixture
def browser(spaces: LocalStudio) -> Iterator[Browser]:
    """Logged in to the space."""
    with Browser(spaces) as logged_in:
        yield logged_in


@pytest.fixture
def kernel_id(browser: Browser) -> Iterator[str]:
    """A running kernel in the space."""
    kernel = browser.post("api/kernels", {"name": "python3"})
    yield kernel["id"]
    browser.call("DELETE", f"api/kernels/{kernel['id']}")
