"""A backfill on a real Airflow: one start of the app, one stop, and a run of its own for each day.

``make live-backfill`` runs it with 30 days, eight at a time, on Postgres and on SQLite.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.airflow_stack import AIRFLOW_2
from tests.helpers.backfills import ONE, OTHER, Backfills, days, number

DAYS = number("BACKFILL_DAYS", 4)
BAD = days(DAYS)[1 :: max(DAYS // number("BACKFILL_BAD", 2), 1)]
ACTIVE = number("BACKFILL_ACTIVE", 4)

pytestmark = [pytest.mark.airflow, pytest.mark.stack, pytest.mark.timeout(3600)]


def once(found: list[str]) -> Counter[tuple[str, str]]:
    """What a run of each of these days writes."""
    return Counter((day, what) for day in found for what in ("begun", "done"))


def test_a_backfill_shares_the_app_and_nothing_else(tmp_path: Path) -> None:
    # Airflow 2.11 backfills in waves, and the app is stopped after each (documented): here in one.
    with Backfills.on(tmp_path, DAYS, DAYS if AIRFLOW_2 else ACTIVE) as it:
        it.bad_days(BAD)
        it.begin(ONE, active=ACTIVE)
        it.until_over(ONE)
        good = [day for day in it.days if day not in BAD]
        log = it.airflow.logs(40)
        # Each day's own notebook, with its own date; the app is stopped although some failed.
        assert it.outputs(ONE) == {day: "" if day in BAD else f"report of {day}\n" for day in it.days}, log
        assert it.failed_days(ONE) == BAD, log
        assert it.ran(ONE) == once(good) + Counter((day, "begun") for day in BAD), log
        assert (it.app_life(), it.kernels_started) == ((1, 1), DAYS), log
        it.assert_nothing_left()

        # The data have come: clearing the days that failed runs just these.
        it.bad_days([])
        it.clear(ONE, BAD)
        if AIRFLOW_2:
            it.begin(ONE, active=ACTIVE)  # its scheduler leaves the runs of backfills alone
        it.until_over(ONE)
        assert it.ran(ONE) == once(it.days) + Counter((day, "begun") for day in BAD)
        assert it.outputs(ONE) == {day: f"report of {day}\n" for day in it.days}
        assert it.states(ONE) == {"success": DAYS}
        assert (it.app_life(), it.kernels_started) == ((2, 2), DAYS + len(BAD))

        # All days once more: nothing is left to run.
        it.begin(ONE, active=ACTIVE, again=True)
        it.until_over(ONE)
        assert it.states(ONE) == {"success": DAYS}
        assert (it.app_life(), it.kernels_started) == ((3, 3), DAYS + len(BAD))
        assert it.ran(ONE) == once(it.days) + Counter((day, "begun") for day in BAD)
        it.assert_nothing_left()


def test_backfills_of_two_dags_share_an_app(tmp_path: Path) -> None:
    count = max(DAYS // 2, 3)
    with Backfills.on(tmp_path, count, count if AIRFLOW_2 else ACTIVE, BACKFILL_SECONDS="3") as it:
        it.begin(ONE, OTHER, active=ACTIVE)
        for dag in (ONE, OTHER):
            it.until_over(dag)
            assert it.ran(dag) == once(it.days), it.airflow.logs(40)
            assert it.states(dag) == {"success": count}
            assert it.outputs(dag) == {day: f"report of {day}\n" for day in it.days}
        assert it.app_life()[0] == it.app_life()[1]
        it.assert_nothing_left()


def test_the_next_try_of_a_day_goes_on_from_the_failed_cell(tmp_path: Path) -> None:
    count = 3
    bad = days(count)[1]
    settings = {
        "BACKFILL_RETRIES": "1",
        "BACKFILL_RETRY_DELAY": "15",
        "BACKFILL_RESUME": "failed_cell",
        "BACKFILL_CATCHUP": "yes",
    }
    with Backfills.on(tmp_path, count, count, **settings) as it:
        it.bad_days([bad])
        it.airflow.unpause(ONE)
        waiting = "SELECT 1 FROM task_instance WHERE task_id = 'report' AND state = 'up_for_retry'"
        it.airflow.until(lambda: it.airflow.query(waiting), 180, "the first try to fail")
        it.bad_days([])
        it.until_over(ONE)
        # The cells before the one that failed ran in the first try only, and its kernel had their variables.
        assert it.ran(ONE) == once(it.days), it.airflow.logs(40)
        assert it.outputs(ONE) == {day: f"report of {day}\n" for day in it.days}
        assert (it.app_life(), it.kernels_started) == ((1, 1), count)
        it.assert_nothing_left()
