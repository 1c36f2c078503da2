"""A client and notebooks for tests against the local Studio."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.bench import Bench, client_of
from tests.helpers.workers import worker  # noqa: F401  # a fixture


@pytest.fixture(params=["jupyterlab", "classic"])
def any_studio(request: pytest.FixtureRequest) -> LocalStudio:
    name = "local_studio" if request.param == "jupyterlab" else "local_studio_classic"
    local: LocalStudio = request.getfixturevalue(name)
    return local


@pytest.fixture
def deferred(request: pytest.FixtureRequest) -> bool:
    """Whether runs are handed over after their first moments; parametrised by ``client_bench.both_ways``."""
    return bool(getattr(request, "param", False))


@pytest.fixture
def make_bench(deferred: bool) -> Iterator[Callable[[LocalStudio], Bench]]:
    made: list[Bench] = []

    def make(local: LocalStudio) -> Bench:
        made.append(Bench(local, client_of(local), f"t{uuid.uuid4().hex[:8]}", deferred=deferred))
        return made[-1]

    yield make
    for bench in made:
        bench.studio.close()


@pytest.fixture
def space(local_studio: LocalStudio, make_bench: Callable[[LocalStudio], Bench]) -> Bench:
    """A client of a space's JupyterLab app."""
    return make_bench(local_studio)


@pytest.fixture
def either(any_studio: LocalStudio, make_bench: Callable[[LocalStudio], Bench]) -> Bench:
    """A client of a space's app, and then of Studio Classic."""
    return make_bench(any_studio)
