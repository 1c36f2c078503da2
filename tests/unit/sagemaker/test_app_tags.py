"""Marks in an app's tags: who started it, who uses it, who is about to stop it."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.sagemaker import app_tags as marks

NOW = 1_795_000_000.0


def read(*tags, created=NOW, now=NOW, but=""):
    return marks.read(
        {key: value for tag in tags for key, value in tag.items()}, created=created, now=now, but=but
    )


def test_a_hold_counts_until_it_ends():
    hold = marks.hold("dag.run", NOW + 10)
    assert list(read(hold).holds.values()) == ["dag.run"]
    assert read(hold, now=NOW + 11).holds == {}


def test_own_marks_are_left_out():
    assert read(marks.hold("me", NOW + 10), marks.hold("you", NOW + 10), but="me").holds == {
        marks.key_of("you"): "you"
    }


@pytest.mark.parametrize(("make", "what"), [(marks.waiting, "waiting"), (marks.closing, "closing")])
def test_who_is_about_to_stop_it_is_forgotten_if_he_says_no_more(make, what):
    mark = make("dag.run", NOW)
    assert list(getattr(read(mark, now=NOW + 100), what).values()) == ["dag.run"]
    assert getattr(read(mark, now=NOW + 130), what) == {}


@pytest.mark.parametrize(("created", "here"), [(NOW + 2, True), (None, True), (NOW + 4000, False)])
def test_the_mark_of_an_earlier_app_does_not_count(created, here):
    assert read(marks.started("dag.run", NOW), created=created).started_here is here


def test_an_app_of_somebody_else():
    assert not read().started_here
    assert not read({"smstudio:started": "yesterday"}).started_here


def test_every_text_becomes_an_allowed_tag():
    (key, value) = next(iter(marks.hold("dag.scheduled__2026-11-01T00:00:00+00:00 ü{}'" + "x" * 400, NOW).items()))
    assert len(key) <= 128
    assert len(value) <= 256
    assert value.startswith("1795000000 dag.scheduled__2026-11-01T00:00:00+00:00 ____xxx")


def test_keys_of_a_holder():
    made = {**marks.hold("a", NOW), **marks.waiting("a", NOW), **marks.closing("a", NOW)}
    assert sorted(marks.keys_of("a")) == sorted(made)
