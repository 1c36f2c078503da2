"""Questions to the kernel, and when they are answered."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.execution import queries as iq
from airflow_provider_smstudio.studio.protocol.kernel_record import HOUSEKEEPING
from airflow_provider_smstudio.studio.protocol.messages import request
from tests.helpers import messages as m


def ask(inquiries, kind=iq.READY, now=0.0):
    message = request("kernel_info_request", {}, session="s", msg_id=inquiries.new_id())
    return inquiries.ask(message, kind, now)


def test_ids_are_ours_and_never_the_same():
    inquiries = iq.Queries("my-session")
    ids = [inquiries.new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(found.startswith(f"my-session{HOUSEKEEPING}") for found in ids)


@pytest.mark.parametrize("first", ["reply", "idle"])
def test_a_question_is_answered_by_reply_and_idle_in_either_order(first):
    inquiries = iq.Queries("s")
    question = ask(inquiries)
    key = question["header"]["msg_id"]
    answers = [m.kernel_info_reply(question), m.idle(question)]
    if first == "idle":
        answers.reverse()
    assert inquiries.owns(key)
    assert inquiries.take(key, m.busy(question), 7.0) is None
    assert inquiries.take(key, answers[0], 7.0) is None
    assert inquiries.take(key, answers[0], 7.0) is None
    found = inquiries.take(key, answers[1], 7.0)
    assert found is not None
    assert found.reply is not None
    assert (found.kind, found.reply["implementation"]) == (iq.READY, "ipython")
    assert not inquiries.owns(key)
    assert not inquiries


def test_output_of_a_question_is_no_answer():
    inquiries = iq.Queries("s")
    question = ask(inquiries)
    key = question["header"]["msg_id"]
    assert inquiries.take(key, m.idle(question), 7.0) is None
    assert inquiries.take(key, m.stream(question, "x"), 7.0) is None
    assert inquiries.take(key, m.message("odd_reply", {}, question), 7.0) is None  # on iopub
    assert inquiries.owns(key)


def test_what_is_open_and_since_when():
    inquiries = iq.Queries("s")
    assert (inquiries.oldest(), bool(inquiries), inquiries.pending(iq.STATE)) == (None, False, False)
    ask(inquiries, iq.STATE, 5.0)
    ask(inquiries, iq.FETCH, 3.0)
    assert (inquiries.oldest(), bool(inquiries)) == (3.0, True)
    assert inquiries.pending(iq.BEHIND, iq.FETCH)
    assert not inquiries.pending(iq.BEHIND)
    assert not inquiries.pending()


@pytest.mark.parametrize("first", [m.kernel_info_reply, m.idle])
def test_since_when_an_answer_is_there_by_half(first):
    inquiries = iq.Queries("s")
    ask(inquiries, iq.FETCH, 1.0)
    question = ask(inquiries, iq.STATE, 2.0)
    key = question["header"]["msg_id"]
    inquiries.take(key, m.busy(question), 3.0)
    inquiries.output_comes(3.0)
    assert inquiries.half_answered() is None
    inquiries.take(key, first(question), 4.0)
    inquiries.take(key, first(question), 5.0)
    assert inquiries.half_answered() == 4.0
    inquiries.output_comes(6.0)
    assert inquiries.half_answered() == 6.0
    inquiries.drop(iq.STATE)
    assert inquiries.half_answered() is None


def test_questions_are_forgotten_by_kind_or_all():
    inquiries = iq.Queries("s")
    state, fetch = ask(inquiries, iq.STATE), ask(inquiries, iq.FETCH)
    inquiries.drop(iq.STATE)
    assert not inquiries.owns(state["header"]["msg_id"])
    assert inquiries.owns(fetch["header"]["msg_id"])
    inquiries.drop()
    assert not inquiries
