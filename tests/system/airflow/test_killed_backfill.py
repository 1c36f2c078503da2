"""A backfill while workers, triggerer and scheduler are killed at random: each day runs once to its end all the same."""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.backfills import ONE, SLOW, Backfills, number

log = logging.getLogger(__name__)

DAYS = number("BACKFILL_DAYS", 3 if SLOW else 4)
KILLS = number("BACKFILL_KILLS", 4 if SLOW else 6)
ENOUGH = min(KILLS, 3)  # so many at least come while a notebook runs
SEED = number("BACKFILL_SEED", 1)
ACTIVE = number("BACKFILL_ACTIVE", 4)
# What Airflow does about lost components within minutes, it does here within seconds.
IMPATIENT = {
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "3600" if SLOW else "10",
    "AIRFLOW__CORE__PARALLELISM": "16",
}
# The SequentialExecutor of Airflow 2 runs tasks in the scheduler itself.
VICTIMS = ["worker", "task", "triggerer", *([] if SLOW else ["scheduler", "scheduler with its workers"])]


class Killer:
    """Kills what one of :data:`VICTIMS` says, and starts it again where nobody else does."""

    def __init__(self, it: Backfills) -> None:
        self._airflow = it.airflow
        self._chance = random.Random(SEED)
        self._next: list[str] = []
        self.killed: list[str] = []

    def strikes_after(self, seconds: float, enough: int) -> bool:
        """Wait, then kill once more; tell whether so many are enough now."""
        time.sleep(seconds)
        self.strike()
        return len(self.killed) >= enough

    def strike(self) -> None:
        running = self._airflow.running_tasks()
        there = [victim for victim in self._next if running or victim not in ("worker", "task")]
        if not there:  # each of them once before any comes again, unless it is not there
            self._next = there = self._chance.sample(VICTIMS, len(VICTIMS))
        victim = there[-1]
        if victim in ("worker", "task"):
            if not running:
                return
            _, task, pid = self._chance.choice(running)
            with suppress(LookupError):  # it has ended meanwhile
                self._airflow.kill_process(pid, supervisor=victim == "worker")
                self.killed.append(f"{victim} of {task}")
        else:
            component = victim.split()[0]
            left = self._airflow.kill(component, below=victim != "scheduler")
            time.sleep(self._chance.uniform(0, 3))
            self._airflow.start(component)
            if left:  # the workers outlive their scheduler, and meet the next one
                time.sleep(self._chance.uniform(0, 15))
                self._airflow.kill_all(left)
            self.killed.append(victim)
        self._next.remove(victim)


@pytest.mark.airflow
@pytest.mark.stack
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("deferrable", ["", "yes"], ids=["worker", "deferred"])
def test_each_day_runs_once_whatever_is_killed(tmp_path: Path, deferrable: str) -> None:
    settings = {
        "BACKFILL_RETRIES": "20",
        "BACKFILL_DEFERRABLE": deferrable,
        "BACKFILL_SECONDS": "6",
        "BACKFILL_CATCHUP": "yes",
        **IMPATIENT,
    }
    with Backfills.on(tmp_path, DAYS, ACTIVE, **settings) as it:
        it.airflow.unpause(ONE)
        killer = Killer(it)
        it.airflow.until(lambda: it.ran(ONE), 180, "the first notebook")
        pauses = random.Random(SEED)
        with it.held():
            it.airflow.until(lambda: killer.strikes_after(pauses.uniform(1, 6), ENOUGH), 300, "enough kills")
        while len(killer.killed) < KILLS and not it.over(ONE):
            killer.strikes_after(pauses.uniform(1, 6), KILLS)
        it.until_over(ONE)
        told = f"{killer.killed}\n{it.airflow.logs(40)}"
        assert it.states(ONE) == {"success": DAYS}, told
        assert it.ran(ONE) == {(day, what): 1 for day in it.days for what in ("begun", "done")}, told
        assert it.outputs(ONE) == {day: f"report of {day}\n" for day in it.days}, told
        it.assert_nothing_left()
        log.info("killed: %s", killer.killed)
