"""A client and notebooks for tests against the local Studio."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunResult, RunSpec, Studio
from airflow_provider_smstudio.studio.execution import events as ev

CLASSIC_KERNEL = "python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0"

both_ways = pytest.mark.parametrize("deferred", [False, True], ids=["worker", "deferred"], indirect=True)
"""Tests with runs that a worker sees to their end, and then with such that are deferred after their first moments."""


def client_of(local: LocalStudio, **changes: Any) -> Studio:
    """Return a client of a local Studio, with some of its arguments changed."""
    environment = local.environment
    arguments: dict[str, Any] = {
        "domain_id": environment["SMSTUDIO_DOMAIN_ID"],
        "user_profile_name": environment["SMSTUDIO_USER_PROFILE_NAME"],
        "space_name": environment.get("SMSTUDIO_SPACE_NAME"),
        "app_type": environment["SMSTUDIO_APP_TYPE"],
    }
    return Studio(local.client(), **{**arguments, **changes})


@dataclass
class Bench:
    """A local Studio with a client, and a folder of its own for one test."""

    local: LocalStudio
    studio: Studio
    folder: str
    events: list[ev.Event] = field(default_factory=list)
    strikes: list[tuple[type[ev.Event], Callable[[], object]]] = field(default_factory=list)
    deferred: bool = False

    def once(self, kind: type[ev.Event], action: Callable[[], object]) -> None:
        """Do something, in a thread of its own, when the run first tells an event of this kind."""
        self.strikes.append((kind, action))

    def listen(self, event: ev.Event) -> None:
        """Take an event of the run."""
        self.events.append(event)
        for strike in [strike for strike in self.strikes if isinstance(event, strike[0])]:
            self.strikes.remove(strike)
            threading.Thread(target=strike[1], daemon=True).start()

    @property
    def path(self) -> Path:
        return self.local.home / self.folder

    def write(self, *cells: str | nbformat.NotebookNode, name: str = "work.ipynb", **metadata: Any) -> str:
        """Write a notebook into the test's folder; return its path below the home."""
        name_of_kernel = CLASSIC_KERNEL if self.studio.server.classic else "python3"
        kernelspec = {"name": name_of_kernel, "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(
            cells=[new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells],
            metadata={"kernelspec": kernelspec, **metadata},
        )
        self.path.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, self.path / name)
        return f"{self.folder}/{name}"

    def run(self, path: str, **arguments: Any) -> RunResult:
        """Run a notebook."""
        return self.run_spec(RunSpec(path, **arguments), self.listen)

    def run_spec(self, spec: RunSpec, listener: Callable[[ev.Event], None]) -> RunResult:
        """Run a spec: by the worker alone, or where ``deferred`` begun by it and gone on with by a watcher."""
        if not self.deferred:
            return self.studio.runner(spec, listener=listener).run()
        from tests.helpers.deferred import run_deferred

        return run_deferred(self, spec, listener)

    def executed(self, path: str = "") -> nbformat.NotebookNode:
        """Read an executed notebook; by default the only one beside ``work.ipynb``."""
        if path:
            return nbformat.read(self.local.home / path, as_version=4)
        (found,) = (self.path / "work-runs").glob("*.ipynb")
        return nbformat.read(found, as_version=4)

    def of_type(self, kind: type[ev.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def kernel_apps(self) -> list[str]:
        """Classic's KernelGateway apps that cost money now."""
        running = [app for app in self.local.apps() if app["Status"] not in ("Deleted", "Deleting")]
        return [app["AppName"] for app in running if app["AppType"] == "KernelGateway"]

    def assert_clean(self) -> None:
        """Nothing is left running."""
        assert self.local.sessions() == []
        assert self.local.kernels() == []
        assert self.kernel_apps() == []
