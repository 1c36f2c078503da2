"""Whole runs on real kernels behind the local Studio: what works."""

from __future__ import annotations

import json
import threading
from datetime import date

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import CellError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.jupyter import websocket
from airflow_provider_smstudio.studio.protocol.messages import Message
from airflow_provider_smstudio.studio.runs import runner
from tests.helpers.bench import CLASSIC_KERNEL, Bench


def test_runs_cells_saves_outputs_and_leaves_nothing(either: Bench) -> None:
    path = either.write("print('one')", "2 + 2")
    result = either.run(path, run_name="dag.task.run")
    assert result.status == "success"
    assert (result.cells, result.cells_executed) == (2, 2)
    notebook = either.executed(result.output_path)
    assert notebook.cells[0].outputs == [{"output_type": "stream", "name": "stdout", "text": "one\n"}]
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "4"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    nbformat.validate(notebook)
    either.assert_clean()


def test_output_lies_beside_the_source_named_after_the_run(space: Bench) -> None:
    path = space.write("1")
    result = space.run(path, run_name="dag.task.scheduled__2026-11-06T00:00:00+00:00")
    folder, _, name = result.output_path.rpartition("/")
    assert folder == f"{space.folder}/work-runs"
    assert name.startswith("dag.task.scheduled__2026-11-06T00_00_00_00_00-")
    assert (space.local.home / result.output_path).exists()
    assert result.output_url.endswith(f"/jupyterlab/default/lab/tree/{result.output_path}")
    assert "?" not in result.output_url


def test_metadata_is_papermills(space: Bench) -> None:
    path = space.write(
        new_markdown_cell("# Title"), new_code_cell("n = 1", metadata={"tags": ["parameters"]}), "print(n)"
    )
    result = space.run(path, parameters={"n": 5})
    notebook = space.executed()
    record = notebook.metadata["papermill"]
    assert record["parameters"] == {"n": 5}
    assert record["input_path"] == path
    assert record["output_path"] == result.output_path
    assert record["exception"] is False
    assert record["duration"] > 0
    assert {cell.metadata["papermill"]["status"] for cell in notebook.cells} == {"completed"}
    assert notebook.cells[2].metadata["tags"] == ["injected-parameters"]
    assert notebook.cells[3].outputs[0]["text"] == "5\n"
    assert notebook.metadata["language_info"]["name"] == "python"


def test_parameters_arrive_with_their_types(space: Bench) -> None:
    values = {
        "text": "quote ' \" and \\ and\nnewline and 😀 and \x00",
        "number": 3,
        "real": float("-inf"),
        "day": date(2026, 11, 23),
        "nothing": None,
        "flag": True,
        "nested": {"a": [1, (2, 3)], "b": {"x", "y"}},
    }
    names = ", ".join(values)
    path = space.write(f"print(repr(({names})))")
    space.run(path, parameters=values)
    import datetime

    shown = space.executed().cells[1].outputs[0]["text"]
    assert eval(shown, {"datetime": datetime, "inf": float("inf")}) == tuple(values.values())


def test_the_source_is_never_changed(space: Bench) -> None:
    path = space.write("print(1)")
    before = (space.local.home / path).read_bytes()
    space.run(path, parameters={"x": 1}, strict_parameters=False)
    assert (space.local.home / path).read_bytes() == before


def test_the_kernel_works_in_the_notebooks_folder(either: Bench) -> None:
    path = either.write("import os; print(os.getcwd())")
    either.run(path)
    assert either.executed().cells[0].outputs[0]["text"].strip() == str(either.path)


def test_deep_folders_and_odd_names(either: Bench) -> None:
    either.folder += "/a b/ü#%/c?d"
    path = either.write("print(1)", name="my notes & more.ipynb")
    result = either.run(path)
    assert either.executed(result.output_path).cells[0].outputs[0]["text"] == "1\n"
    either.assert_clean()


def test_output_is_told_while_the_cell_runs(space: Bench) -> None:
    path = space.write("import time\nfor i in range(5):\n    print(i)\n    time.sleep(0.3)")
    space.run(path)
    pieces = space.of_type(ev.CellOutput)
    assert len(pieces) >= 4
    assert space.executed().cells[0].outputs[0]["text"] == "0\n1\n2\n3\n4\n"


def test_an_output_that_breaks_the_format_ends_no_run(space: Bench) -> None:
    path = space.write("display({'image/png': 5, 'text/plain': 'p'}, raw=True)", "print('on')")
    space.run(path)
    notebook = space.executed()
    assert notebook.cells[0].outputs[0]["data"] == {"image/png": "5", "text/plain": "p"}
    assert notebook.cells[1].outputs[0]["text"] == "on\n"
    nbformat.validate(notebook)


def test_late_output_goes_to_the_cell_that_it_names(space: Bench) -> None:
    # As kernels send what a thread of an earlier cell prints (ipykernel 7.4 names the newest cell instead).
    path = space.write(
        "kernel = get_ipython().kernel\nparent = kernel.get_parent()\nprint('early')",
        "late = {'name': 'stdout', 'text': 'late\\n'}\n"
        "_ = kernel.session.send(kernel.iopub_socket, 'stream', late, parent=parent)",
    )
    space.run(path)
    first, second = space.executed().cells
    assert first.outputs[0]["text"] == "early\nlate\n"
    assert second.outputs == []


def test_a_display_is_updated_across_cells(space: Bench) -> None:
    path = space.write(
        "h = display('old', display_id='d')", "from IPython.display import update_display\nh.update('new')"
    )
    space.run(path)
    first, second = space.executed().cells
    assert first.outputs[0]["data"]["text/plain"] == "'new'"
    assert second.outputs == []


def test_ten_megabytes_in_one_display_arrive(either: Bench) -> None:
    path = either.write("from IPython.display import display\ndisplay({'text/plain': 'x' * 10_000_000}, raw=True)")
    either.run(path)
    assert len(either.executed().cells[0].outputs[0]["data"]["text/plain"]) == 10_000_000


def test_output_dropped_by_the_server_is_fetched_from_the_kernel(either: Bench) -> None:
    # In pieces of a hundred lines: ipykernel 7.3 on Python 3.12 needs minutes for as many single prints.
    lines = "for start in range(0, 200_000, 100):\n    print('\\n'.join(f'{i:099}' for i in range(start, start + 100)))"
    path = either.write(lines, "print('after')")
    result = either.run(path)
    assert result.incomplete_cells == []
    assert either.of_type(ev.OutputLost) == []
    first, second = either.executed().cells
    assert "".join(output["text"] for output in first.outputs) == "".join(f"{i:099}\n" for i in range(200_000))
    assert second.outputs[0]["text"] == "after\n"


def test_output_dropped_by_the_server_and_not_kept_by_the_kernel_is_reported_as_lost(space: Bench) -> None:
    path = space.write("print('x' * 20_000_000)", "print('after')")
    result = space.run(path, record_mib=0)
    assert result.incomplete_cells == [1]
    (lost,) = space.of_type(ev.OutputLost)
    assert "its kernel has not kept it" in lost.reason
    notebook = space.executed()
    assert notebook.cells[0].metadata["smstudio"]["output_lost"] == [lost.reason]
    assert notebook.cells[1].outputs[0]["text"] == "after\n"


def test_a_kernel_that_never_says_a_word_is_replaced_once(
    space: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that found its ports taken, and lives on without them."""
    monkeypatch.setattr(runner, "_MUTE_LIMIT", 1.5)
    send = websocket.KernelWebSocket.send
    seen: set[str] = set()

    def mute(self: websocket.KernelWebSocket, message: Message) -> None:
        seen.update(kernel["id"] for kernel in space.local.kernels())
        if len(seen) > 1:
            send(self, message)

    monkeypatch.setattr(websocket.KernelWebSocket, "send", mute)
    assert space.run(space.write("print('at last')")).status == "success"
    assert len(seen) == 2
    assert "the kernel did not answer within 1.5 s: starting another one" in caplog.text
    assert space.executed().cells[0].outputs[0]["text"] == "at last\n"
    space.assert_clean()


def test_tags_and_allowed_errors(space: Bench) -> None:
    path = space.write(
        new_code_cell("1/0", metadata={"tags": ["raises-exception"]}),
        new_code_cell("print('never')", metadata={"tags": ["skip-execution"]}, outputs=[]),
        "print('on')",
    )
    result = space.run(path)
    assert result.failed_cells == [1]
    notebook = space.executed()
    assert notebook.cells[0].outputs[0]["ename"] == "ZeroDivisionError"
    assert notebook.cells[1].outputs == []
    assert notebook.cells[2].outputs[0]["text"] == "on\n"


def test_allow_errors_goes_on(space: Bench) -> None:
    path = space.write("1/0", "print('on')")
    assert space.run(path, allow_errors=True).failed_cells == [1]
    assert space.executed().cells[1].outputs[0]["text"] == "on\n"


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "quit()", "exit"])
def test_a_notebook_may_end_itself(space: Bench, source: str) -> None:
    path = space.write("print(1)", source, "print('never')")
    result = space.run(path)
    assert (result.status, result.cells_executed, result.cells) == ("stopped", 2, 3)
    assert space.executed().cells[2].outputs == []
    space.assert_clean()


def test_upload_from_a_local_file(either: Bench, tmp_path) -> None:
    source = tmp_path / "mine.ipynb"
    source.write_text((either.local.home / either.write("print('up')")).read_text())
    result = either.run(f"{either.folder}/new/deep/there.ipynb", upload_from=str(source))
    assert either.executed(result.output_path).cells[0].outputs[0]["text"] == "up\n"


def test_an_old_notebook_is_upgraded(space: Bench) -> None:
    code = {"cell_type": "code", "language": "python", "collapsed": False, "metadata": {}, "outputs": []}
    old = {
        "metadata": {"name": "old"},
        "nbformat": 3,
        "nbformat_minor": 0,
        "worksheets": [{"cells": [{**code, "input": "print(3)"}], "metadata": {}}],
    }
    space.path.mkdir()
    (space.path / "old.ipynb").write_text(json.dumps(old))
    result = space.run(f"{space.folder}/old.ipynb")
    assert space.executed(result.output_path).cells[0].outputs[0]["text"] == "3\n"


def test_concurrent_runs_of_one_notebook_share_nothing(either: Bench) -> None:
    path = either.write(
        new_code_cell("n = 0", metadata={"tags": ["parameters"]}),
        "import time\nseen = globals().get('seen', [])\nseen.append(n); time.sleep(1)\nprint(seen)",
    )
    results: dict[int, str] = {}

    def one(n: int) -> None:
        spec = RunSpec(path, parameters={"n": n}, run_name=f"run{n}")
        results[n] = either.studio.runner(spec).run().output_path

    threads = [threading.Thread(target=one, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2]
    for n, output in results.items():
        assert either.executed(output).cells[2].outputs[0]["text"] == f"[{n}]\n"
    either.assert_clean()


class TestClassic:
    @pytest.fixture
    def classic(self, local_studio_classic, make_bench) -> Bench:
        return make_bench(local_studio_classic)

    def test_the_kernel_app_is_gone_at_the_end(self, classic: Bench) -> None:
        result = classic.run(classic.write("print(1)"))
        assert result.instance_type == "ml.t3.medium"
        assert classic.kernel_apps() == []

    def test_the_switch_keeps_the_app(self, classic: Bench) -> None:
        classic.run(classic.write("print(1)"), delete_kernel_app=False)
        (name,) = classic.kernel_apps()
        classic.studio.server.delete_app(name)

    def test_waits_until_the_app_is_gone(self, classic: Bench) -> None:
        classic.local.switches.app_delete_delay = 3.0
        try:
            classic.run(classic.write("print(1)"))
        finally:
            classic.local.switches.app_delete_delay = 0.0
        assert classic.studio.server.apps() == []

    def test_an_app_that_another_run_uses_stays(self, classic: Bench) -> None:
        slow = classic.write("import time; time.sleep(4); print('slow')", name="slow.ipynb")
        quick = classic.write("print('quick')", name="quick.ipynb")
        outputs: list[str] = []
        thread = threading.Thread(
            target=lambda: outputs.append(classic.studio.runner(RunSpec(slow)).run().output_path)
        )
        thread.start()
        while not classic.kernel_apps():
            assert thread.is_alive()
        classic.run(quick)
        assert len(classic.kernel_apps()) == 1
        thread.join()
        assert classic.executed(outputs[0]).cells[0].outputs[0]["text"] == "slow\n"
        assert classic.kernel_apps() == []

    def test_instance_type_from_argument_and_notebook(self, classic: Bench) -> None:
        path = classic.write("print(1)", instance_type="ml.m5.large")
        assert classic.run(path).instance_type == "ml.m5.large"
        assert classic.run(path, instance_type="ml.c5.large").instance_type == "ml.c5.large"

    def test_image_of_another_region(self, classic: Bench) -> None:
        elsewhere = CLASSIC_KERNEL.replace("us-east-1:081325390199", "ap-southeast-1:492261229750")
        kernelspec = {"name": elsewhere, "display_name": "Python 3 (Data Science)", "language": "python"}
        assert classic.run(classic.write("print(1)", kernelspec=kernelspec)).kernel_name == CLASSIC_KERNEL


def test_a_classic_notebook_runs_in_a_space(space: Bench) -> None:
    kernelspec = {"name": CLASSIC_KERNEL, "display_name": "Python 3 (Data Science)", "language": "python"}
    assert space.run(space.write("print(1)", kernelspec=kernelspec)).kernel_name == "python3"


def test_a_failing_cell_is_saved_and_told(either: Bench) -> None:
    path = either.write("print('before')", "def f():\n    raise KeyError('gone')\nf()", "print('never')")
    with pytest.raises(CellError, match="cell 2/3 raised KeyError: 'gone'") as caught:
        either.run(path)
    error = caught.value
    assert (error.cell_number, error.ename) == (2, "KeyError")
    assert "raise KeyError('gone')" in error.traceback
    assert "\x1b" not in error.traceback
    assert error.output_path is not None
    notebook = either.executed(error.output_path)
    assert notebook.cells[1].outputs[0]["ename"] == "KeyError"
    assert [cell.metadata["papermill"]["status"] for cell in notebook.cells] == ["completed", "failed", "pending"]
    assert notebook.metadata["papermill"]["exception"] is True
    either.assert_clean()
