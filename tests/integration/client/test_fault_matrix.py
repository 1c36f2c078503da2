"""Every fault that a run survives, at every moment, in both Studios: nothing runs twice, no line is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import UnknownOutcomeError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.protocol import kernel_record
from tests.helpers.bench import Bench, both_ways
from tests.helpers.faults import CELLS, EXPECTED, MOMENTS, RAN_ONCE, Fault, at, hurry, printed, ran


def cut(how: str) -> Fault:
    return lambda local: void(local.cut_websockets(how))


def void(_: object) -> None:
    pass


def refused_for_a_while(local: LocalStudio) -> None:
    local.switches.refuse_connections = True
    local.cut_websockets("reset")

    def allow() -> None:
        local.switches.refuse_connections = False

    threading.Timer(0.7, allow).start()


def bad_gateway(local: LocalStudio) -> None:
    local.switches.websocket_refusals = 2
    local.switches.http_errors = 2
    local.cut_websockets("reset")


def slow_and_dropped(local: LocalStudio) -> None:
    local.switches.http_delay = 0.1
    local.switches.http_drops = 2
    local.cut_websockets("reset")


def expired(answer: str) -> Fault:
    def fault(local: LocalStudio) -> None:
        local.switches.unauthenticated = answer
        local.switches.cut_websockets_at_expiry = True
        local.expire_logins()

    return fault


def failing_saves(local: LocalStudio) -> None:
    local.switches.save_failures = 2


def slow_saves(local: LocalStudio) -> None:
    local.switches.save_delay = 0.5


def no_replay(local: LocalStudio) -> None:
    local.switches.replay = False
    local.cut_websockets("reset")


FAULTS: dict[str, Fault] = {
    "closed": cut("close"),
    "reset": cut("reset"),
    "half-open": cut("half-open"),
    "deaf": cut("deaf"),
    "refused": refused_for_a_while,
    "502": bad_gateway,
    "slow and dropped": slow_and_dropped,
    "expired, 403": expired("403"),
    "expired, 302": expired("302"),
    "expired, 200": expired("200-html"),
    "failing saves": failing_saves,
    "slow saves": slow_saves,
    "no replay": no_replay,
}

DEFAULTS = {
    "refuse_connections": False,
    "http_delay": 0.0,
    "http_drops": 0,
    "http_errors": 0,
    "websocket_refusals": 0,
    "save_delay": 0.0,
    "save_failures": 0,
    "unauthenticated": "403",
    "cut_websockets_at_expiry": False,
    "replay": True,
}

pytestmark = both_ways


@pytest.fixture
def bench(either: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    hurry(monkeypatch)
    yield either
    for name, value in DEFAULTS.items():
        setattr(either.local.switches, name, value)


def run(bench: Bench, listener: Callable[[ev.Event], None], **arguments: object) -> object:
    spec = RunSpec(bench.write(*CELLS), **arguments)  # type: ignore[arg-type]  # passed on as they are
    began = time.monotonic()
    try:
        return bench.run_spec(spec, listener)
    finally:
        assert time.monotonic() - began < 40, "it hung"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_a_run_survives(bench: Bench, fault: str, moment: str) -> None:
    happened = threading.Event()

    def strike() -> None:
        FAULTS[fault](bench.local)
        happened.set()

    run(bench, at(moment, bench, strike))
    assert happened.is_set()
    assert ran(bench) == RAN_ONCE
    assert printed(bench) == EXPECTED
    assert bench.of_type(ev.OutputLost) == []
    bench.assert_clean()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", ["closed", "reset", "half-open", "deaf", "no replay"])
def test_a_kernel_that_keeps_no_record(
    bench: Bench, fault: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other kernels: nothing runs twice; what may be missing is marked; what cannot be known ends the run."""
    monkeypatch.setattr(kernel_record, "supported", lambda info: False)
    with contextlib.suppress(UnknownOutcomeError):
        run(bench, at(moment, bench, lambda: FAULTS[fault](bench.local)))
    finished = bench.events[-1]
    assert isinstance(finished, ev.Finished)
    if finished.error is None:
        assert ran(bench) == RAN_ONCE
        lost = [event.cell.number for event in bench.of_type(ev.OutputLost)]
        assert printed(bench) == EXPECTED or lost == [2]
    else:
        assert isinstance(finished.error, UnknownOutcomeError)
        assert RAN_ONCE.startswith(ran(bench))  # nothing twice, and nothing behind what is unknown
    bench.assert_clean()
