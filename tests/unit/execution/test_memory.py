"""How full an instance's memory is: what is understood of the server's answer, and what is worth a line."""

from __future__ import annotations

import math

import pytest

from airflow_provider_smstudio.studio.execution.memory import FALL, FIRST, RISE, MemoryGauge, describe
from airflow_provider_smstudio.studio.protocol.instance_metrics import Memory, Reading, read_memory

GIB = 2**30


def answer(used: object = 4 * GIB, total: object = 16 * GIB, percent: object = 25.0) -> dict[str, object]:
    memory = {"rss_in_bytes": used, "total_in_bytes": total, "memory_percentage": percent}
    return {
        "metrics": {
            "memory": memory,
            "cpu": {"cpu_count": 4, "cpu_percentage": 3.5},
            "storage": {"free_space_in_bytes": 1, "used_space_in_bytes": 1, "total_space_in_bytes": 2},
        }
    }


def test_the_documents_memory() -> None:
    assert read_memory(answer()) == Memory(25.0, 4.0 * GIB, 16.0 * GIB)


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (30.1, 30.1),  # psutil's percentage counts otherwise than its bytes
        (0.25, 25.0),  # a part of one, as the bytes say
        (1, 100.0),
        (None, 25.0),
        ("25", 25.0),
        (True, 25.0),
        (-3, 25.0),
        (0, 25.0),
        (250, 25.0),
        (math.nan, 25.0),
        (math.inf, 25.0),
        (10**400, 25.0),
    ],
)
def test_the_percentage_is_told_or_follows_from_the_bytes(percent: object, expected: float) -> None:
    used = 16 * GIB if expected == 100 else 4 * GIB
    found = read_memory(answer(used, 16 * GIB, percent))
    assert found == Memory(expected, float(used), 16.0 * GIB)


def test_one_percent_of_much_is_one_percent() -> None:
    assert read_memory(answer(8 * GIB, 1000 * GIB, 0.8)) == Memory(0.8, 8.0 * GIB, 1000.0 * GIB)


@pytest.mark.parametrize(
    ("used", "total"),
    [(None, None), ("4", "16"), (0, 16 * GIB), (4 * GIB, 0), (17 * GIB, 16 * GIB), (GIB, math.nan), ([], {})],
)
def test_bytes_that_cannot_be_are_left_out(used: object, total: object) -> None:
    assert read_memory(answer(used, total, 87.5)) == Memory(87.5)


def test_bytes_of_one_process_are_not_those_of_the_instance() -> None:
    assert read_memory(answer(GIB // 4, 16 * GIB, 87.5)) == Memory(87.5)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        [answer()],
        "metrics",
        42,
        {},
        {"metrics": None},
        {"metrics": []},
        {"metrics": {}},
        {"metrics": {"memory": None}},
        {"metrics": {"memory": {}}},  # what the extension answers when it cannot find out
        {"metrics": {"memory": "19 %"}},
        {"metrics": {"memory": ["rss_in_bytes"]}},
        {"message": "Forbidden", "reason": None},
        answer(None, None, None),
        answer("4", "16", "25"),
        answer(None, None, 0.9),  # a part of one, or less than one percent?
        answer(None, None, 0),
        answer(0, 16 * GIB, 0),
        answer(None, None, 101),
    ],
)
def test_whatever_does_not_tell_is_not_known(document: object) -> None:
    assert read_memory(document) is None


def reading(percent: float, at: float = 0.0, kernels: int | None = None) -> Reading:
    return Reading(Memory(percent, percent * 0.16 * GIB, 16.0 * GIB), at, kernels)


def test_lines() -> None:
    assert describe(reading(19.4), FIRST) == "the instance's memory: 3.1 of 16.0 GiB in use (19 %)"
    assert describe(reading(91.0, kernels=12), RISE) == (
        "THE INSTANCE'S MEMORY FILLS UP: 14.6 of 16.0 GiB in use (91 %), 12 kernels on it. When it is full, kernels "
        "are killed. Run fewer notebooks at a time (with a pool, or max_active_tis_per_dag), or start the app on a "
        "larger instance_type"
    )
    assert ", 1 kernel on it." in describe(reading(91.0, kernels=1), RISE)
    assert "(91 %). When" in describe(reading(91.0), RISE)
    assert describe(Reading(Memory(79.96), 0.0), FALL) == "the instance's memory has fallen again: 79 % in use"


def told(*percents: float, every: float = 30.0, gauge: MemoryGauge | None = None) -> list[str | None]:
    """What a run tells when it reads this, one after the other."""
    gauge = gauge or MemoryGauge(30.0)
    return [
        gauge.take(reading(percent, number * every), number * every) for number, percent in enumerate(percents)
    ]


def test_the_first_reading_is_told_and_then_nothing_new() -> None:
    assert told(19, 40, 79.9, 5) == [FIRST, None, None, None]


def test_each_threshold_is_told_once() -> None:
    assert told(50, 80, 81, 89.9, 90, 92, 95, 99, 100) == [FIRST, RISE, None, None, RISE, None, RISE, None, None]


def test_a_first_reading_may_be_a_warning() -> None:
    assert told(85, 86, 96, 92) == [RISE, None, RISE, None]


def test_of_several_thresholds_at_once_the_highest_is_told() -> None:
    assert told(50, 97, 91, 94, 97) == [FIRST, RISE, None, None, None]


def test_flapping_around_a_threshold_is_silent() -> None:
    assert told(50, *[81, 75] * 20) == [FIRST, RISE, *[None] * 39]


def test_a_clear_fall_is_told_once() -> None:
    assert told(50, 96, 84, 71, 69.9, 40) == [FIRST, RISE, None, None, FALL, None]


def test_memory_that_goes_up_and_down_by_much_is_told_every_ten_minutes() -> None:
    found = told(30, *[85, 30] * 20)  # a minute up and down
    assert found[:3] == [FIRST, RISE, FALL]
    assert [number * 30 for number, change in enumerate(found) if change == RISE] == [30, 630]
    assert found.count(FALL) == 2


def test_a_higher_threshold_is_told_even_if_a_lower_one_was_just_told() -> None:
    assert told(30, 85, 30, 96) == [FIRST, RISE, FALL, RISE]


def test_what_another_process_has_told_is_not_told_again() -> None:
    for level, percents, expected in (
        (None, (50,), [FIRST]),
        (0.0, (50, 85), [None, RISE]),
        (80.0, (85, 91, 50), [None, RISE, FALL]),
        (90.0, (85, 91, 50), [None, None, FALL]),
    ):
        first, second = MemoryGauge(30.0), MemoryGauge(30.0)
        if level is not None:
            first.take(reading(max(level, 10.0)), 0.0)
        assert first.level == level
        second.go_on(first.level)
        assert told(*percents, gauge=second) == expected


def test_it_is_due_at_once_and_then_after_the_interval() -> None:
    gauge = MemoryGauge(30.0)
    assert gauge.due(0.0)
    gauge.wait(0.0)  # one is under way
    assert not gauge.due(0.9)
    assert gauge.due(1.0)
    gauge.take(reading(50, at=0.5), 1.0)
    assert not gauge.due(30.9)
    assert gauge.due(31.0)


def test_the_same_reading_is_taken_once() -> None:
    gauge = MemoryGauge(30.0)
    gauge.take(reading(50, at=1.0), 1.0)
    assert gauge.take(reading(99, at=1.0), 31.0) is None
    assert gauge.due(31.0)


def test_what_was_before() -> None:
    gauge = MemoryGauge(30.0)
    assert gauge.before(5.0) == ""
    gauge.take(reading(19, at=0.0), 0.0)
    assert gauge.before(12.4) == "the instance's memory was 19 % full 12 s before"
    gauge.take(reading(97.6, at=30.0), 30.0)
    assert gauge.before(42.0) == "the instance's memory was 97 % full 12 s before"
    gauge.take(reading(40, at=60.0), 60.0)  # perhaps when it was over already
    assert gauge.before(61.0) == "the instance's memory was 97 % full 31 s before"
    gauge.take(reading(40, at=90.0), 90.0)
    assert gauge.before(91.0) == "the instance's memory was 40 % full 1 s before"
