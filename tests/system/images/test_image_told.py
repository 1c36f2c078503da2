"""What an image makes impossible, or needs to be helped with: the log says it."""

from __future__ import annotations

import threading
import time

import pytest

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.jupyter import idle_shutdown
from airflow_provider_smstudio.studio.jupyter.kernel_probe import notes_activity
from airflow_provider_smstudio.studio.runs.log import RunLog
from tests.helpers.bench import Bench
from tests.helpers.faults import set_options, wait_for

PRINTS = "open('began', 'w').close()\nfor i in range(100):\n    print(i, flush=True)\n    time.sleep(0.05)"


class TestTold:
    def test_activity_that_the_server_does_not_note(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where it notes none, a terminal shows the notebook to Studio's idle shutdown, and the log says so once."""
        caplog.set_level("INFO")
        monkeypatch.setattr(idle_shutdown, "INTERVAL", 1.0)
        noted = notes_activity(bench.studio.server, f"{bench.folder}/look")
        fast = "import time\nfor i in range(60):\n    print(i, flush=True)\n    time.sleep(0.1)"
        bench.run(bench.write(fast))
        told = [line for line in caplog.messages if "has noted no activity of this notebook" in line]
        assert len(told) == (0 if noted else 1)
        assert bench.studio.server._call("GET", "api/terminals").json() == []

    def test_output_that_may_be_missing_of_a_kernel_without_a_record(
        self, impatient: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody can fetch it: the result, the notebook and the log say that it may be missing."""
        set_options(monkeypatch, record=False)
        lines: list[str] = []
        live = RunLog(lambda level, line: lines.append(line))

        def away() -> None:
            wait_for((impatient.path / "began").exists)
            impatient.local.switches.refuse_connections = True
            impatient.local.cut_websockets("reset")
            time.sleep(1.5)
            impatient.local.switches.refuse_connections = False

        def listen(event: ev.Event) -> None:
            live(event)
            impatient.listen(event)

        spec = RunSpec(impatient.write(f"import time\n{PRINTS}", "print('two')"))
        threading.Thread(target=away).start()
        result = impatient.run_spec(spec, listen)
        assert (result.status, result.cells_executed, result.incomplete_cells) == ("success", 2, [1])
        assert len([line for line in lines if "OUTPUT LOST" in line]) == 1
        assert "output_lost" in impatient.executed().cells[0].metadata["smstudio"]
