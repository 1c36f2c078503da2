"""A backfill under Celery while workers are lost in every way: each day runs once to its end all the same.

``CELERY_DAYS`` is how many days, ``CELERY_KILLS`` how many workers, ``CELERY_SEED`` another order.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.backfills import ONE, Backfills, number
from tests.helpers.celery_stack import ENDS, CeleryStack

log = logging.getLogger(__name__)

DAYS = number("CELERY_DAYS", 4)
KILLS = number("CELERY_KILLS", len(ENDS) if DAYS > 8 else 3)
ENOUGH = min(KILLS, 3)  # so many at least come while a notebook runs
ACTIVE = number("CELERY_ACTIVE", 4)  # as many as the workers have slots
# With this one, three kills are: SIGTERM to the group, SIGKILL to the main process, SIGQUIT.
SEED = number("CELERY_SEED", 35)


class Killer:
    """Ends the worker of a running task, in each of the ways that :data:`ENDS` has before any comes again."""

    def __init__(self, airflow: CeleryStack) -> None:
        self._airflow = airflow
        self._chance = random.Random(SEED)
        self._ways: list[str] = []
        self.ended: list[str] = []

    def strikes_after(self, seconds: float, enough: int) -> bool:
        """Wait, then end one more, if any works; tell whether so many are enough now."""
        time.sleep(seconds)
        # What the last one has left behind has had its time.
        self._airflow.end_orphans()
        running = self._airflow.running_tasks()
        if running:
            if not self._ways:
                self._ways = self._chance.sample(list(ENDS), len(ENDS))
            _, task, pid = self._chance.choice(running)
            with suppress(LookupError, ProcessLookupError):  # it has ended meanwhile
                self._airflow.end_worker(self._ways[-1], pid)
                self.ended.append(f"{self._ways.pop()} of {task}")
        return len(self.ended) >= enough


@pytest.mark.airflow
@pytest.mark.stack
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("deferrable", ["", "yes"], ids=["worker", "deferred"])
def test_each_day_runs_once_whichever_way_workers_end(tmp_path: Path, deferrable: str) -> None:
    settings = {
        "BACKFILL_RETRIES": "20",
        "BACKFILL_DEFERRABLE": deferrable,
        "BACKFILL_SECONDS": "6",
        "BACKFILL_CATCHUP": "yes",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    }
    with Backfills.on(tmp_path, DAYS, ACTIVE, CeleryStack, **settings) as it:
        assert isinstance(it.airflow, CeleryStack)
        it.airflow.unpause(ONE)
        killer = Killer(it.airflow)
        it.airflow.until(lambda: it.ran(ONE), 180, "the first notebook")
        chance = random.Random(SEED)
        # A deferred one is in a worker for seconds only: nothing would work on notebooks that are held.
        pauses = (0.2, 1) if deferrable else (5, 15)
        if not deferrable:
            with it.held():
                it.airflow.until(lambda: killer.strikes_after(chance.uniform(*pauses), ENOUGH), 600, "enough ends")
        while len(killer.ended) < KILLS and not it.over(ONE):
            killer.strikes_after(chance.uniform(*pauses), KILLS)
        it.until_over(ONE)
        assert killer.ended
        told = f"{killer.ended}\n{it.airflow.logs(40)}"
        assert it.states(ONE) == {"success": DAYS}, told
        assert it.ran(ONE) == {(day, what): 1 for day in it.days for what in ("begun", "done")}, told
        assert it.outputs(ONE) == {day: f"report of {day}\n" for day in it.days}, told
        it.assert_nothing_left()
        log.info("ended: %s", killer.ended)
