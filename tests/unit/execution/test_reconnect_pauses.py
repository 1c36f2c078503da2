"""When a lost connection is tried again, and when it is given up."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.execution.reconnect_pauses import ConnectionState


def test_a_new_link_is_up():
    link = ConnectionState(60)
    assert (link.up, link.retry_at, link.seconds_down(5)) == (True, None, 0)


def test_the_first_try_is_at_once_and_the_pauses_grow_to_the_longest():
    link = ConnectionState(1000)
    pauses, now = [], 10.0
    for _ in range(9):
        pause = link.lost(now)
        assert pause is not None
        retry_at = link.retry_at
        assert retry_at == now + pause
        pauses.append(pause)
        link.try_now()
        assert (link.retry_at, link.up) == (None, False)
        now += pause
    assert pauses == [0, 0.5, 1, 2, 4, 8, 15, 15, 15]


def test_the_last_pause_ends_at_the_limit():
    link = ConnectionState(10)
    now = 0.0
    for pause in (0, 0.5, 1, 2, 4, 2.5):
        assert link.lost(now) == pause
        now += pause
    assert now == 10
    assert link.lost(now) is None


@pytest.mark.parametrize("limit", [0, 0.0])
def test_without_a_limit_there_is_one_try(limit):
    link = ConnectionState(limit)
    assert link.lost(5) == 0
    assert link.lost(5) is None


def test_a_link_that_is_restored_begins_anew():
    link = ConnectionState(60)
    link.lost(0)
    link.lost(1)
    assert link.seconds_down(3) == 3
    assert link.restored(4) == 4
    assert (link.up, link.retry_at, link.seconds_down(9)) == (True, None, 0)
    assert link.lost(100) == 0
    assert link.lost(159.9) == pytest.approx(0.1)
    assert link.lost(160) is None


def test_restoring_what_was_not_lost_changes_nothing():
    assert ConnectionState(60).restored(7) == 0
