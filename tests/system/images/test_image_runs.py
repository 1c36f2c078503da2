"""Runs on an image's own server that nothing disturbs."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import CellError, CellTimeoutError, RunKilledError
from airflow_provider_smstudio.studio.runs.runner import NotebookRunner
from tests.helpers.bench import Bench, client_of
from tests.helpers.image_bench import kernel_of, papermill, state_of, stays, when_begun
from tests.helpers.workers import text_of

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.ci
class TestResults:
    def test_parameters_and_rich_output(self, bench: Bench) -> None:
        path = bench.write(
            new_code_cell("day, n = '', 0", metadata={"tags": ["parameters"]}),
            "import sys\nprint('out', day)\nprint('err', n, file=sys.stderr)",
            "import pandas as pd\npd.DataFrame({'n': range(n)})",
            "import matplotlib.pyplot as plt\nplt.plot([1, n])\nplt.show()",
            "shown = display('old', display_id='d')",
            "shown.update('new')\n2 + 2",
        )
        result = bench.run(path, parameters={"day": "2026-01-01", "n": 3})
        assert (result.status, result.cells, result.cells_executed) == ("success", 7, 7)
        assert result.output_path.startswith(f"{bench.folder}/work-runs/")
        notebook = bench.executed()
        nbformat.validate(notebook)
        assert state_of(bench) == "completed"
        assert papermill(bench) == ["completed"] * 7
        streams, frame, plot, old, new = (cell.outputs for cell in notebook.cells[2:])
        assert {item.name: item.text for item in streams} == {
            "stdout": "out 2026-01-01\n",
            "stderr": "err 3\n",
        }
        assert "<table" in frame[0].data["text/html"]
        assert base64.b64decode(plot[0].data["image/png"]).startswith(PNG)
        assert [item.data["text/plain"] for item in (*old, *new)] == ["'new'", "4"]


@pytest.mark.ci
class TestErrors:
    def test_a_cells_error(self, bench: Bench) -> None:
        path = bench.write("x = 1", "def f():\n    return x / 0\nf()", "print('never')")
        with pytest.raises(CellError, match="cell 2/3 raised ZeroDivisionError") as caught:
            bench.run(path)
        assert caught.value.output_path is not None
        shown = bench.executed(caught.value.output_path).cells[1].outputs[0]
        assert (shown.output_type, shown.ename) == ("error", "ZeroDivisionError")
        assert "return x / 0" in caught.value.traceback
        assert "ZeroDivisionError" in shown.traceback[-1]
        assert papermill(bench) == ["completed", "failed", "pending"]
        assert state_of(bench) == "cell-failed"


class TestMuchOutput:
    def test_twenty_megabytes_in_order(self, bench: Bench) -> None:
        # In pieces of a hundred lines: ipykernel 7.3 on Python 3.12 needs minutes for as many single prints.
        source = "for start in range(0, 200_000, 100):\n    print('\\n'.join(f'{i:099}' for i in range(start, start + 100)))"
        result = bench.run(bench.write(source, "print('on')"))
        assert result.incomplete_cells == []
        assert text_of(bench, 0) == "".join(f"{i:099}\n" for i in range(200_000))
        assert text_of(bench, 1) == "on\n"

    def test_ten_megabytes_in_one_display(self, bench: Bench) -> None:
        bench.run(bench.write("display({'text/plain': 'x' * 10_000_000}, raw=True)"))
        assert bench.executed().cells[0].outputs[0].data["text/plain"] == "x" * 10_000_000


class TestEnds:
    @pytest.mark.ci
    def test_a_run_that_is_stopped(self, bench: Bench) -> None:
        path = bench.write(stays(60), "print('never')")
        runner = bench.studio.runner(RunSpec(path), listener=bench.listen)
        moments = when_begun(bench, lambda: runner.stop("enough"))
        with pytest.raises(RunKilledError, match="enough"):
            runner.run()
        assert time.monotonic() - moments[0] < 10
        assert text_of(bench, 0) == "on\n"
        assert papermill(bench) == ["failed", "pending"]
        assert state_of(bench) == "killed"

    def test_a_cell_that_takes_too_long(self, bench: Bench) -> None:
        path = bench.write(stays(60), "print('never')")
        with pytest.raises(CellTimeoutError, match="cell 1/2"):
            bench.run(path, cell_timeout=3)
        assert text_of(bench, 0) == "on\n"
        assert papermill(bench) == ["failed", "pending"]


@pytest.mark.ci
class TestBusyCells:
    """Cells that say nothing for a long time; the limits are short, and end none of them."""

    def test_a_silent_cell(self, impatient: Bench) -> None:
        impatient.run(impatient.write(stays(30, "print('off')")))
        assert text_of(impatient, 0) == "on\noff\n"

    def test_a_cell_that_holds_the_kernels_lock(self, impatient: Bench) -> None:
        """Nothing of Python runs in the kernel meanwhile, so that it looks like a dead one from outside."""
        holds = "import ctypes\nctypes.PyDLL(None).sleep(25)\nprint('off')"
        kernels: list[str] = []
        when_begun(impatient, lambda: kernels.append(kernel_of(impatient)))
        impatient.run(impatient.write(stays(2, holds), "print('three')"))
        # ipykernel itself may complain on stderr that its output thread did not answer.
        shown = [item.text for item in impatient.executed().cells[0].outputs if item.name == "stdout"]
        assert "".join(shown) == "on\noff\n"
        assert text_of(impatient, 1) == "three\n"
        assert len(kernels) == 1  # and no other one beside it, two seconds before the lock


@pytest.mark.ci
class TestManyRuns:
    def test_eight_at_once(self, bench: Bench) -> None:
        source = "import time\nfor i in range(20):\n    print(n, i, flush=True)\n    time.sleep(0.1)"
        path = bench.write(new_code_cell("n = 0", metadata={"tags": ["parameters"]}), source)

        runners: list[NotebookRunner] = []

        def run(n: int) -> str:
            studio = client_of(bench.local)
            try:
                spec = RunSpec(path, parameters={"n": n}, output_path=f"{bench.folder}/out-{n}.ipynb")
                runner = studio.runner(spec)
                runners.append(runner)
                return runner.run().status
            finally:
                studio.close()

        with ThreadPoolExecutor(8) as pool:
            try:
                assert list(pool.map(run, range(8))) == ["success"] * 8
            finally:
                for runner in runners:
                    runner.stop("the test is over")  # one that hangs would keep the pool from its end
        for n in range(8):
            shown = bench.executed(f"{bench.folder}/out-{n}.ipynb").cells[2].outputs
            assert "".join(item.text for item in shown) == "".join(f"{n} {i}\n" for i in range(20))
