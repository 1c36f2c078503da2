"""Runs a notebook as a deferrable task does: begun by one client, gone on with by watchers on an event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

from airflow_provider_smstudio.studio import RunResult, RunSpec, Studio
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources, in_thread
from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher
from tests.helpers.bench import Bench, client_of

Listener = Callable[[ev.Event], None]


def begin(bench: Bench, spec: RunSpec, listener: Listener, after: float = 0.0) -> RunResult | Handover:
    """Begin a run as the worker does."""
    named = replace(spec, run_key=spec.run_key or bench.folder)
    return bench.studio.runner(named, listener=listener).run_or_hand_over(after)


def plain(handover: Handover) -> Handover:
    """Send what is handed over through JSON, as Airflow's database does."""
    return Handover.from_dict(json.loads(json.dumps(handover.as_dict())))


async def watching(
    bench: Bench,
    handover: Handover,
    use: Callable[[NotebookWatcher], object],
    listener: Listener | None = None,
    deadline: float | None = None,
) -> object:
    """Make a watcher as the trigger does, and await what ``use`` does with it."""

    async def make() -> Studio:
        return await in_thread(None, client_of, bench.local)

    async with SharedResources.use() as resources, resources.studio("bench", make) as shared:
        watcher = NotebookWatcher(resources, shared, plain(handover), listener=listener, deadline=deadline)
        try:
            return await use(watcher)  # type: ignore[misc]  # a coroutine
        finally:
            await watcher.leave()


def watch(
    bench: Bench, handover: Handover, listener: Listener | None = None, deadline: float | None = None
) -> RunResult:
    """Go on with a run to its end."""
    return asyncio.run(watching(bench, handover, NotebookWatcher.watch, listener, deadline))  # type: ignore[return-value]


def run_deferred(bench: Bench, spec: RunSpec, listener: Listener, after: float = 0.0) -> RunResult:
    """Run a notebook, the worker's part and then the triggerer's."""
    begun = begin(bench, spec, listener, after)
    return begun if isinstance(begun, RunResult) else watch(bench, begun, listener)


def handed(bench: Bench, *cells: str, after: float = 0.0, **arguments: object) -> Handover:
    """Begin a run that is not over when the worker leaves it."""
    begun = begin(bench, RunSpec(bench.write(*cells), **arguments), bench.listen, after)  # type: ignore[arg-type]
    assert isinstance(begun, Handover)
    return begun
