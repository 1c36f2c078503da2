"""Saves the executed notebook of a run on an event loop. A file, the spool, holds its outputs."""

from __future__ import annotations

import asyncio
import logging
import time

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import RunTakenOverError, StudioError
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.notebook.spool import NotebookSpool
from airflow_provider_smstudio.studio.runs import spooled_notebook
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.shared_resources import (
    SharedResources,
    SharedStudio,
    StudioClient,
    in_thread,
)

log = logging.getLogger(__name__)

_SAVE_PAUSES = (1.0, 3.0, 10.0)
SAVES_A_SECOND = 40
"""How many running notebooks are saved per second at most. With more runs, each is saved less often."""


class AsyncNotebookSaver:
    """Reads and saves the executed notebook of one run.

    :param resources: the resources that the runs of this event loop share.
    :param shared: the client of the Studio app.
    :param path: the executed notebook.
    """

    def __init__(self, resources: SharedResources, shared: SharedStudio[StudioClient], path: str) -> None:
        self.guard: OutputGuard | None = None
        """Writes the executed notebook while this process owns the run. It is set before the run starts."""
        self._resources, self._shared = resources, shared
        self._path = path
        self._spool: NotebookSpool | None = None
        self._saving: asyncio.Task[None] | None = None
        self._saved_at = 0.0

    async def read(self) -> NotebookNode:
        """Read the executed notebook, and store its outputs in the spool.

        :raises StudioError: when that failed.
        """
        former, spool = self._spool, await in_thread(None, NotebookSpool)
        self._spool = spool
        if former is not None:  # an earlier read was cancelled
            await in_thread(None, former.close)
        self._saved_at = time.monotonic()
        return await self._shared.call(spooled_notebook.read_into, spool, self._shared.studio.server, self._path)

    def check_owner(self, *, hurry: bool = False) -> None:
        """Check that this watcher still owns the run. Call it in a thread.

        :param hurry: wait only a few seconds for the answer.
        :raises RunTakenOverError: when another process owns it.
        :raises SaveError: when there is no answer.
        """
        if self.guard is not None:
            self.guard.check(hurry=hurry)

    def save_soon(self, run: NotebookRun) -> None:
        """Save the run's current state in the background, unless a save is under way or was made a moment ago."""
        now = time.monotonic()
        early = now < self._saved_at + self._resources.runs / SAVES_A_SECOND
        if early or (self._saving is not None and not self._saving.done()):
            run.postpone_save(now)
        elif not run.finished:
            self._saved_at = now
            self._saving = asyncio.create_task(self._save_now(run))

    async def save_last(self, run: NotebookRun, *, hurry: bool) -> None:
        """Save the run's last state, after a save that is under way.

        :param hurry: make one attempt only: a killed task has few seconds left.
        :raises RunTakenOverError: when another process owns the run.
        :raises SaveError: when that failed.
        """
        await self.end_save(hurry=hurry)
        for pause in (*(() if hurry else _SAVE_PAUSES), None):
            try:
                await self.write(run, hurry=hurry)
                return
            except RunTakenOverError:
                raise
            except StudioError as error:
                if pause is None:
                    raise
                log.warning("%s; trying again", error)
                await asyncio.sleep(pause)

    async def end_save(self, *, hurry: bool) -> None:
        """Wait for the save that is under way: an older state must not overwrite the last one."""
        if self._saving is not None:
            await asyncio.wait([self._saving], timeout=5.0 if hurry else None)

    async def _save_now(self, run: NotebookRun) -> None:
        began = time.monotonic()
        try:
            size = await self.write(run)
        except RunTakenOverError:
            return  # every later check raises it again
        except StudioError as error:
            log.warning("%s; the run continues", error)
        else:
            run.saved(time.monotonic(), time.monotonic() - began, size)

    async def write(self, run: NotebookRun, *, hurry: bool = False) -> int:
        """Save the current notebook, and move the outputs of cells that have ended from memory to the spool.

        :return: how many bytes were written.
        """
        spool, guard = self._spool, self.guard
        assert spool is not None and guard is not None  # noqa: S101, PT018  # leave() is called last
        notebook = run.snapshot(time.monotonic())
        over = {index: outputs for index, outputs in run.at_rest() if not spool.is_away(index, notebook)}
        draft = spool.draft(notebook)
        size, places = await self._shared.save(
            spooled_notebook.write_from, spool, draft, set(over), lambda file: guard.write(file, hurry=hurry)
        )
        for index, outputs in run.at_rest():  # more outputs may have arrived meanwhile
            place = places.get(index)
            if place is not None and outputs is over.get(index):
                fetch = spooled_notebook.Fetch(spool, place)
                if outputs.put_away(fetch):
                    spool.put_away(index, notebook, place)
        return size

    def cancel(self) -> None:
        """Cancel a save that is under way."""
        if self._saving is not None:
            self._saving.cancel()

    async def close(self) -> None:
        """Remove the spool."""
        spool, self._spool = self._spool, None
        if spool is not None:
            await in_thread(None, spool.close)  # slow on a busy disk
