"""Faults that no run survives: it ends at once, says why, keeps what it had, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import KernelDiedError, StudioError
from tests.helpers.bench import Bench, both_ways
from tests.helpers.faults import CELLS, MOMENTS, at, hurry, ran

LIMIT = 25.0


def kill_kernel(local: LocalStudio) -> None:
    (kernel,) = local.kernels()
    local.kill_kernel(kernel["id"])


def restart_server(local: LocalStudio) -> None:
    local.restart_server()


REASONS: dict[str, tuple[Callable[[LocalStudio], None], str]] = {
    "out of memory": (
        kill_kernel,
        r"(it crashed|it was started again, .*)\. The usual reason of a crash is that memory ran out on ml\.",
    ),
    "server restarted": (restart_server, "the server does not know it any more"),
}

pytestmark = both_ways


@pytest.fixture
def bench(either: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    hurry(monkeypatch)
    yield either
    either.local.start_app()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("reason", REASONS)
def test_the_kernel_is_gone(bench: Bench, reason: str, moment: str) -> None:
    fault, words = REASONS[reason]
    happened: list[float] = []

    def strike() -> None:
        fault(bench.local)
        happened.append(time.monotonic())

    spec = RunSpec(bench.write(*CELLS))
    with pytest.raises(KernelDiedError, match=words) as caught:
        bench.run_spec(spec, at(moment, bench, strike))
    assert time.monotonic() - happened[0] < LIMIT
    # A request that is sent in the moment before the server notices runs on the fresh kernel (documented). On a busy
    # machine the cell may have ended before the fault came.
    ended = moment == "ended unseen" or "2-end" in ran(bench)
    assert "1 2 2-end 3 ".startswith(ran(bench))
    assert "3" not in ran(bench) or ended
    notebook = bench.executed(caught.value.output_path or "")
    assert notebook.cells[0].outputs[0]["text"] == "one\n"
    if moment == "while it prints" and reason == "out of memory":
        assert notebook.cells[1].outputs[0]["text"].startswith("line 0\nline 1\nline 2\nline 3\n")
        assert (caught.value.cell_number, caught.value.cell_index) == (2, 1) or ended
    assert notebook.metadata["papermill"]["exception"] is True
    bench.assert_clean()


def test_the_app_is_stopped_by_somebody(bench: Bench) -> None:
    spec = RunSpec(bench.write(*CELLS), reconnect_timeout=3)
    listener = at("while it prints", bench, bench.local.stop_app)
    words = "could not be reached for 3 s|does not know it any more|a user or another program restarted it or shut it down"
    with pytest.raises(StudioError, match=words) as caught:
        bench.run_spec(spec, listener)
    bench.local.start_app()
    assert "cell 2/3" in str(caught.value)
    assert "3" not in ran(bench)
    bench.assert_clean()
