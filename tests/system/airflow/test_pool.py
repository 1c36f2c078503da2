"""A pool that counts deferred tasks limits the kernels of a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.backfills import ONE, SLOW, Backfills

DAYS, SLOTS = 3 if SLOW else 5, 2


@pytest.mark.airflow
@pytest.mark.stack
@pytest.mark.timeout(900)
def test_a_pool_limits_deferred_notebooks(tmp_path: Path) -> None:
    settings = {
        "BACKFILL_POOL": "space",
        "BACKFILL_DEFERRABLE": "yes",
        "BACKFILL_SECONDS": "8",
        "BACKFILL_CATCHUP": "yes",
    }
    with Backfills.on(tmp_path, DAYS, DAYS, **settings) as it:
        it.airflow.cli("pools", "set", "space", str(SLOTS), "kernels at once", "--include-deferred")
        it.airflow.unpause(ONE)
        kernels, deferred = set(), set()

        def over() -> bool:
            kernels.add(len(it.studio.kernels()))
            rows = it.airflow.query("SELECT 1 FROM task_instance WHERE task_id = 'report' AND state = 'deferred'")
            deferred.add(len(rows))
            return it.over(ONE)

        it.airflow.until(over, 600, "the backfill")
        assert it.states(ONE) == {"success": DAYS}, it.airflow.logs(40)
        assert max(kernels) in (1, SLOTS), it.airflow.logs(40)
        assert 0 < max(deferred) <= SLOTS, it.airflow.logs(40)
