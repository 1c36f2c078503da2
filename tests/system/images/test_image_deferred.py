"""Runs on an image's own server that a watcher goes on with."""

from __future__ import annotations

import asyncio
import time

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import KernelDiedError
from airflow_provider_smstudio.studio.execution import events as ev
from tests.helpers.bench import Bench
from tests.helpers.deferred import handed, run_deferred, watch, watching
from tests.helpers.faults import CELLS, EXPECTED, RAN_ONCE, printed, ran, wait_for
from tests.helpers.image_bench import CRASH_LIMIT, kernel_of, papermill, state_of, stays, when_begun
from tests.helpers.workers import text_of

pytestmark = pytest.mark.ci


class TestDeferred:
    def test_to_its_end(self, bench: Bench) -> None:
        result = run_deferred(bench, RunSpec(bench.write(*CELLS)), bench.listen)
        assert (result.status, result.cells_executed, result.incomplete_cells) == ("success", 3, [])
        assert ran(bench) == RAN_ONCE
        assert printed(bench) == EXPECTED
        assert bench.of_type(ev.OutputLost) == []

    def test_a_crash_is_noticed(self, impatient: Bench) -> None:
        handover = handed(impatient, "print('one')", stays(300), "print('never')")
        died = when_begun(impatient, lambda: impatient.local.kill_kernel(kernel_of(impatient)), after=2)
        with pytest.raises(KernelDiedError, match="cell 2/3"):
            watch(impatient, handover)
        assert time.monotonic() - died[0] < CRASH_LIMIT
        assert [text_of(impatient, i) for i in range(3)] == ["one\n", "on\n", ""]
        assert state_of(impatient) == "failed"


class TestDeferredAndKilled:
    @pytest.mark.parametrize("replay", [True, False])
    def test_right_after_the_hand_over(self, bench: Bench, replay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the cell has printed by then is in the notebook, whether or not the server has kept it for us."""
        monkeypatch.setattr(bench.local.switches, "replay", replay)
        handover = handed(bench, stays(60), "print('never')")
        wait_for((bench.path / "began").exists)
        time.sleep(0.5)
        asyncio.run(watching(bench, handover, lambda it: it.kill("the task was killed"), bench.listen))
        assert text_of(bench, 0) == "on\n"
        assert papermill(bench) == ["failed", "pending"]
        assert state_of(bench) == "killed"
