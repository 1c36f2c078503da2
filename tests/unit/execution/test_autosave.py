"""When a notebook is saved: what a run writes and how long that takes stays in proportion to its time."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.execution.autosave import Autosave


def simulate(schedule, *, seconds, bytes_a_second, save_seconds=lambda size: 0.0, step=0.25):
    """Let a notebook grow and be saved whenever that is due; return how many saves, bytes and seconds."""
    now = size = written = spent = 0.0
    saves = 0
    while now < seconds:
        now += step
        size += bytes_a_second * step
        schedule.changed = True
        if schedule.due(now):
            schedule.made(now, [])
            took = save_seconds(size)
            now += took
            schedule.saved(now, took, int(size))
            saves, written, spent = saves + 1, written + size, spent + took
    return saves, written, spent


@pytest.mark.parametrize("bytes_a_second", [10**3, 10**5, 10**6, 10**7])
def test_what_is_written_grows_with_the_time_and_not_with_its_square(bytes_a_second):
    for seconds in (1000, 2000, 4000, 8000):
        schedule = Autosave(5, 0)
        saves, written, _ = simulate(schedule, seconds=seconds, bytes_a_second=bytes_a_second)
        assert written <= 2**18 * seconds + bytes_a_second * seconds  # the last one may be too much
        assert saves >= min(seconds / 5, written / (bytes_a_second * seconds)) - 1  # it does save


def test_small_notebooks_are_saved_at_the_interval():
    saves, _, _ = simulate(Autosave(5, 0), seconds=1000, bytes_a_second=10)
    assert 190 <= saves <= 200


def test_slow_saves_take_a_twentieth_of_the_time():
    _, _, spent = simulate(Autosave(5, 0), seconds=10_000, bytes_a_second=10, save_seconds=lambda size: 3.0)
    assert 10_000 / 30 <= spent <= 10_000 / 20


def test_nothing_is_due_without_a_change():
    schedule = Autosave(5, 100)
    schedule.made(100, [])
    assert (schedule.due(10**6), schedule.next_at()) == (False, None)
    schedule.changed = True
    assert (schedule.due(104.9), schedule.due(105), schedule.next_at()) == (False, True, 105)


def test_what_must_not_be_missed_is_due_at_once_and_once():
    schedule = Autosave(5, 100)
    schedule.made(100, [])
    schedule.soon()
    assert schedule.due(100)
    schedule.made(100, [])
    schedule.saved(101, 0.01, 10)
    schedule.changed = True
    assert schedule.next_at() == 106


def test_what_cannot_be_saved_now_is_not_due_at_once_again():
    schedule = Autosave(5, 100)
    schedule.soon()
    schedule.postpone(100)
    assert schedule.next_at() == 105


def test_only_what_was_written_counts_as_saved_and_once():
    schedule = Autosave(5, 0)
    assert schedule.take_saved() == []
    schedule.made(1, ["a"])
    assert schedule.take_saved() == []
    schedule.made(2, ["b"])  # the first was not written; the newest holds both
    schedule.saved(3, 0.1, 10)
    assert schedule.take_saved() == ["a", "b"]
    assert schedule.take_saved() == []
    schedule.made(4, [])
    schedule.saved(5, 0.1, 10)
    assert schedule.take_saved() == []


def test_what_was_told_in_vain_is_told_again():
    schedule = Autosave(5.0, 0.0)
    schedule.made(1.0, ["a", "b"])
    schedule.saved(1.0, 0.1, 10)
    told = schedule.take_saved()
    assert (told, schedule.take_saved()) == (["a", "b"], [])
    schedule.put_back(told)
    assert schedule.take_saved() == ["a", "b"]
