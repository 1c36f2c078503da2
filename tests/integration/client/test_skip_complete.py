"""``skip_if_output_complete``: what is there already, complete and of the same making, is not run again."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.studio.errors import CellError
from tests.helpers.bench import Bench, both_ways

pytestmark = both_ways

DEFAULTS = new_code_cell("day = 1", metadata={"tags": ["parameters"]})
COUNTS = "open('ran', 'a').write('.')\nprint(day)"


def runs(bench: Bench) -> int:
    return len((bench.path / "ran").read_text())


def test_a_complete_one_is_not_run_again(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS)
    first = either.run(path, parameters={"day": 7}, skip_if_output_complete=True)
    before = json.loads((either.local.home / first.output_path).read_text())
    starts = either.local.api_calls.get("CreateApp", 0)
    again = either.run(path, parameters={"day": 7}, skip_if_output_complete=True)
    assert runs(either) == 1
    assert (first.skipped, again.skipped) == (False, True)
    told = {**again.as_dict(), "skipped": False, "startup_seconds": 0}
    assert told == {**first.as_dict(), "startup_seconds": 0}
    assert json.loads((either.local.home / first.output_path).read_text()) == before
    assert either.local.api_calls.get("CreateApp", 0) == starts
    either.assert_clean()


def test_its_values_are_there_again(either: Bench) -> None:
    show = "display({'application/json': {'n': day}}, metadata={'smstudio': {'name': 'orders'}}, raw=True)"
    path = either.write(DEFAULTS, show, "import time\ntime.sleep(0.5)")
    for skipped in (False, True):
        result = either.run(path, parameters={"day": 7}, skip_if_output_complete=True)
        assert (result.skipped, result.values) == (skipped, {"orders": {"n": 7}})


def test_other_parameters_are_run(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS)
    out = f"{either.folder}/out.ipynb"
    for day, times in ((7, 1), (8, 2), (8, 2)):
        either.run(path, output_path=out, parameters={"day": day}, skip_if_output_complete=True)
        assert runs(either) == times
    assert either.executed(out).cells[2].outputs[0]["text"] == "8\n"


def test_a_changed_notebook_is_run(either: Bench) -> None:
    either.run(either.write(DEFAULTS, COUNTS), skip_if_output_complete=True)
    path = either.write(DEFAULTS, f"{COUNTS}\nprint('more')")
    assert either.run(path, skip_if_output_complete=True).skipped is False
    assert runs(either) == 2


def test_what_failed_is_run(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS, "import os\nassert os.path.exists('repaired')")
    with pytest.raises(CellError):
        either.run(path, skip_if_output_complete=True)
    (either.path / "repaired").write_text("")
    assert either.run(path, skip_if_output_complete=True).skipped is False
    assert either.run(path, skip_if_output_complete=True).skipped is True
    assert runs(either) == 2


def test_what_lost_output_is_run(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS)
    place = either.local.home / either.run(path).output_path
    notebook = nbformat.read(place, as_version=4)
    notebook.cells[1].metadata["smstudio"]["output_lost"] = ["it was too much"]
    nbformat.write(notebook, place)
    assert either.run(path, skip_if_output_complete=True).skipped is False


def test_by_default_all_is_run(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS)
    assert [either.run(path).skipped for _ in range(2)] == [False, False]
    assert runs(either) == 2


def test_a_notebook_of_somebody_else_is_no_reason(either: Bench) -> None:
    path = either.write(DEFAULTS, COUNTS)
    either.write("print('mine')", name="out.ipynb")
    result = either.run(path, output_path=f"{either.folder}/out.ipynb", skip_if_output_complete=True)
    assert result.skipped is False
