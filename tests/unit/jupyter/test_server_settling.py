"""The wait for a server that asks a starting kernel by itself, with a server and a websocket made of lists."""

from __future__ import annotations

import time

import pytest

from airflow_provider_smstudio.studio.errors import ConnectionLostError, KernelStartError, ServerError
from airflow_provider_smstudio.studio.jupyter import server_settling
from airflow_provider_smstudio.studio.protocol.messages import Message


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Server:
    """Tells of a kernel: ``states`` are pairs of a moment and what REST says from then on."""

    classic = False

    def __init__(self, clock: Clock, states, connections=0, error=None) -> None:
        self.clock, self.states, self.connections, self.error = clock, states, connections, error
        self.began = clock.now

    def kernel(self, kernel_id):
        if self.error is not None:
            raise self.error
        state = [state for moment, state in self.states if moment <= self.clock.now - self.began][-1]
        return None if state is None else {"execution_state": state, "connections": self.connections}


class Channel:
    """The kernel answers on the control channel from a moment on."""

    def __init__(self, clock: Clock, answers_after=None, breaks=False) -> None:
        self.clock, self.answers_after, self.breaks = clock, answers_after, breaks
        self.began = clock.now
        self.sent: list[Message] = []

    def send(self, message) -> None:
        self.sent.append(message)

    def receive(self, timeout):
        if self.breaks:
            raise ConnectionLostError("gone")
        self.clock.now += timeout
        if self.answers_after is None or self.clock.now - self.began < self.answers_after:
            return None
        return {"header": {"msg_type": "kernel_info_reply"}, "parent_header": self.sent[-1]["header"]}


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    return made


def waited(clock, server, websocket, check=lambda: None):
    began = clock.now
    server_settling.wait_until_settled(server, "k", websocket, check)
    assert {message["channel"] for message in websocket.sent} <= {"control"}
    return clock.now - began


def test_a_stock_server_is_not_waited_for(clock):
    websocket = Channel(clock)
    assert waited(clock, Server(clock, [(0, "starting")], connections=1), websocket) == 0
    assert websocket.sent == []


def test_nor_is_classic(clock):
    server = Server(clock, [(0, "starting")])
    server.classic = True
    assert waited(clock, server, Channel(clock)) == 0


def test_the_kernel_must_have_been_idle_for_a_while(clock):
    """The server's own questions make it busy again and again."""
    states = [(0, "starting"), (1, "idle"), (1.3, "busy"), (1.5, "idle")]
    assert waited(clock, Server(clock, states), Channel(clock, answers_after=0.9)) == pytest.approx(2.2, abs=0.25)


def test_where_the_server_calls_it_starting_its_own_answer_must_do(clock):
    websocket = Channel(clock, answers_after=4)
    assert waited(clock, Server(clock, [(0, "starting")]), websocket) == pytest.approx(6.0, abs=0.21)
    assert len(websocket.sent) == 4  # one may be lost while the server connects


def test_it_is_not_waited_for_ever(clock):
    assert waited(clock, Server(clock, [(0, "starting")]), Channel(clock)) == pytest.approx(30.0, abs=0.2)


@pytest.mark.parametrize("error", [None, ServerError("no", status=500)], ids=["gone", "unasked"])
def test_what_the_run_will_notice_ends_the_waiting(clock, error):
    assert waited(clock, Server(clock, [(0, None)], error=error), Channel(clock)) == 0


def test_so_does_a_websocket_that_breaks(clock):
    assert waited(clock, Server(clock, [(0, "starting")]), Channel(clock, breaks=True)) == 0


def test_a_start_that_took_too_long_gets_out(clock):
    def check() -> None:
        raise KernelStartError("too long")

    with pytest.raises(KernelStartError):
        waited(clock, Server(clock, [(0, "starting")]), Channel(clock), check)
