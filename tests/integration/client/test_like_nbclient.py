"""Executed cells equal those of nbclient, the reference for a notebook's outputs.

The notebooks run on the same kernelspec, once through the local Studio and once through nbclient. Normalised is
what differs between any two runs: tracebacks' colours and addresses, timing metadata, and how a kernel happens
to cut its streams into pieces.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell

from airflow_provider_smstudio.studio.errors import CellError
from airflow_provider_smstudio.studio.notebook.outputs import StreamText
from tests.helpers.bench import Bench


def tagged(source: str, *tags: str, **arguments: Any) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)}, **arguments)


CASES: dict[str, list[str | nbformat.NotebookNode]] = {
    "streams": [
        "print('one')\nprint('two')",
        "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)",
        "print('no newline', end='')",
        "for i in range(2000): print(i)",
        "print('ünï', '😀', '\\x00', '\\x1b[31mred\\x1b[0m')",
    ],
    "carriage returns": [
        "import sys, time\nfor i in range(5):\n    print(f'\\r{i}/5', end='', flush=True); time.sleep(.02)",
        "print('abc\\rd')",
        "print('abc\\r\\ndef')",
        "print('a\\rb\\rc', end='')",
        "print('100%\\rdone', flush=True)\nprint('next')",
    ],
    "results": ["x = 1", "x", "[1, 2]", "None", "x;", "'text'", "object"],
    "rich output": [
        "from IPython.display import HTML, Image, JSON, Latex, Markdown, SVG, display\ndisplay(HTML('<b>h</b>'))",
        "display(Markdown('*m*'), JSON({'a': [1, None]}), Latex('$x$'))",
        "display({'text/plain': 'p', 'application/vnd.own+json': {'k': 1}}, raw=True, metadata={'m': 1})",
        "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
        "import base64\nImage(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='))",
        "print('before')\ndisplay('between')\nprint('after')\n'last'",
    ],
    "a table and a plot": [
        "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2], 'b': ['x', None]})\nframe",
        "frame.describe()",
        "import matplotlib\nmatplotlib.use('module://matplotlib_inline.backend_inline')\n"
        "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    ],
    "updates": [
        "h = display('first', display_id='one')\nh2 = display('second', display_id='two')",
        "h.update('changed later')",
        "from IPython.display import update_display\nupdate_display('two changed', display_id='two')\nprint('here')",
        "display('shown again', display_id='one')",
        "update_display('all', display_id='one')",
        "update_display('nobody shows this', display_id='none')",
    ],
    "clear_output": [
        "from IPython.display import clear_output, update_display\nprint('gone')\nclear_output()\nprint('stays')",
        "print('gone')\nclear_output(wait=True)\nprint('stays')",
        "print('stays')\nclear_output(wait=True)",
        "for i in range(3):\n    clear_output(wait=True)\n    display(i)",
        "display('gone', display_id='c')\nclear_output()",
        "update_display('must not come back', display_id='c')\nprint('end')",
        "print('a'); clear_output(wait=True); print('b'); clear_output(); print('c')",
    ],
    "errors that may be": [
        tagged("1/0", "raises-exception"),
        tagged("print('before')\nraise ValueError('two\\nlines')", "raises-exception"),
        tagged("def broken(:", "raises-exception"),
        tagged("assert False, 'no'", "raises-exception"),
        "print('still here')",
    ],
    "tags and empty cells": [
        new_markdown_cell("# Not run"),
        "",
        "   \n\t",
        "# only a comment",
        tagged("print('not run')", "skip-execution", outputs=[nbformat.v4.new_output("stream", text="kept\n")]),
        new_code_cell("y = 5", outputs=[nbformat.v4.new_output("stream", text="old\n")], execution_count=77),
        "print(y)",
    ],
    "magics and more": [
        "%%capture kept\nprint('hidden')",
        "print(kept.stdout)",
        "%time z = 3",
        "!echo shell",
        "%%bash\necho from bash",
        "import asyncio\nawait asyncio.sleep(0.01)\nprint('awaited')",
        "import logging\nlogging.warning('logged')",
        "import warnings\nwarnings.warn('warned')",
        "?len",
    ],
    "widgets": [
        "import ipywidgets as w\ns = w.IntSlider(value=3)\ns",
        "s.value = 7\nw.HBox([w.Label('a'), s])",
        "w.Image(value=b'\\x00\\x01', format='png')",
    ],
}


def normalised(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    cells = []
    for cell in copy.deepcopy(notebook.cells):
        kept = {"type": cell.cell_type, "source": cell.source}
        if cell.cell_type == "code":
            kept["execution_count"] = cell.execution_count
            kept["outputs"] = normalised_outputs(cell.outputs)
        cells.append(kept)
    return cells


def normalised_outputs(outputs: list[nbformat.NotebookNode]) -> list[dict[str, Any]]:
    """Join each stream; stdout and stderr have no common order."""
    streams: dict[str, StreamText] = {}
    rest = []
    for output in outputs:
        if output["output_type"] == "stream":
            streams.setdefault(output["name"], StreamText()).append(output["text"])
        else:
            rest.append(plain(dict(output)))
    return [*({"stream": name, "text": plain(stream.text)} for name, stream in sorted(streams.items())), *rest]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"\x1b\[[0-9;]*m", "", value)
    value = re.sub(r"0x[0-9a-f]+|ipykernel_\d+/\d+|/tmp/[^\s:)]+|[0-9a-f]{32}", "…", value)
    return re.sub(r"(CPU times|Wall time):.*", r"\1", value)


def by_nbclient(notebook: nbformat.NotebookNode, folder: str, **options: Any) -> nbformat.NotebookNode:
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": folder}}, coalesce_streams=True, **options
    )
    return client.execute()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_same_cells(space: Bench, case: str) -> None:
    path = space.write(*copy.deepcopy(CASES[case]))
    expected = by_nbclient(nbformat.read(space.local.home / path, as_version=4), str(space.path))
    result = space.run(path)
    executed = space.executed(result.output_path)
    assert normalised(executed) == normalised(expected)
    states = [
        notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
        for notebook in (executed, expected)
    ]
    models = [sorted(state["model_name"] for state in found.values()) for found in states]
    assert models[0] == models[1]
    assert bool(models[0]) == (case == "widgets")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    "source", ["1/0", "raise KeyError('k')", "def broken(:", "import sys; sys.exit(3)", "input('?')"]
)
def test_the_same_failure(space: Bench, source: str) -> None:
    path = space.write("print('on')", source, "print('never')")
    notebook = nbformat.read(space.local.home / path, as_version=4)
    with pytest.raises(CellExecutionError) as expected:
        by_nbclient(notebook, str(space.path))
    with pytest.raises(CellError) as caught:
        space.run(path)
    assert (caught.value.ename, caught.value.evalue) == (expected.value.ename, expected.value.evalue)
    assert normalised(space.executed()) == normalised(notebook)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_same_with_errors_allowed(space: Bench) -> None:
    path = space.write("1/0", "print('on')", "undefined", "print('end')")
    expected = by_nbclient(
        nbformat.read(space.local.home / path, as_version=4), str(space.path), allow_errors=True
    )
    result = space.run(path, allow_errors=True)
    assert normalised(space.executed(result.output_path)) == normalised(expected)
