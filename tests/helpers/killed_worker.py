"""The DAG whose worker is killed."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

DAG, RUN, TASK = "killed_worker", "run-1", "count"
COUNT, PAUSE = 60, 0.5
CELLS = [
    "import os, time\nwith open('pids.txt', 'a') as file:\n    print(os.getpid(), file=file)\nx = 1",
    """\
for number in range(1, count + 1):
    x += 1
    with open('numbers.txt', 'a') as file:
        print(number, file=file)
    print(number)
    time.sleep(pause)""",
    "x",
]


def write_notebook(path: Path) -> None:
    parameters = new_code_cell("count, pause = 3, 0.1", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, CELLS)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
