"""The notebook of 2021 that this project grew from, run cell by cell against Studio Classic.

The notebook lies beside the repository on the machines of its authors; elsewhere there is no such test, and
``test_classic.py`` covers the same flow.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES
from tests.helpers import ROOT

SEED = ROOT.parent / "shared" / "docs" / "seed-notebook.txt"

# Runs the cells in one namespace, then looks at what they left.
RUNNER = """
import json, sys
cells, space = json.load(open(sys.argv[1])), {}
for cell in cells:
    exec(compile(cell, "<seed>", "exec"), space)
apps = space["reqsess"].get(space["api_base_url"] + "/sagemaker/api/apps").json()
traffic = [[m["msg_type"] for m in cell["responses"]] for cell in space["cell_traffic"]]
texts = [m["content"]["text"] for c in space["cell_traffic"] for m in c["responses"] if m["msg_type"] == "stream"]
print("RESULT" + json.dumps([apps, traffic, texts, space["del_app_resp"].status_code]))
"""


def code_cells(text: str) -> list[str]:
    """The code after each ``In [n]:``, up to where output or prose begins: the longest part that is Python."""
    cells = []
    for block in re.split(r"^In \[\d+\]:\n", text, flags=re.MULTILINE)[1:]:
        lines = block.splitlines()
        for end in range(len(lines), 0, -1):
            try:
                body = ast.parse("\n".join(lines[:end])).body
            except SyntaxError:
                continue
            # Output that happens to be Python, such as a printed dictionary.
            while (
                body
                and isinstance(body[-1], ast.Expr)
                and isinstance(body[-1].value, (ast.Dict, ast.List, ast.Constant))
            ):
                lines = lines[: body.pop().lineno - 1]
            cells.append("\n".join(lines[: body[-1].end_lineno if body else 0]))
            break
    return cells


def run_seed(studio: LocalStudio, tmp_path: Path) -> None:
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3 (Data Science)",
                "language": "python",
                "name": CLASSIC_IMAGES[0].kernel_name(studio.region),
            }
        },
        "cells": [
            {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
            for source in ("greeting = 'Hello, world!'", "print(greeting)", "print('again')\ndel greeting")
        ],
    }
    cells = code_cells(SEED.read_text())
    assert len(cells) == 20
    source = json.dumps(cells)
    for old, new in (
        ("d-YOUR-DOMAIN-ID-HERE", "d-localstudio"),
        ("YOUR-TARGET-USER-PROFILE-NAME-HERE", "demo-user"),
        ("wss://", "ws://"),
    ):
        assert old in source
        source = source.replace(old, new)
    (tmp_path / "cells.json").write_text(source)
    (tmp_path / "runner.py").write_text(RUNNER)
    (studio.home / "HelloWorld.ipynb").write_text(json.dumps(notebook))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "runner.py"), str(tmp_path / "cells.json")],
        env={**os.environ, **studio.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    apps, traffic, texts, deleted = json.loads(done.stdout.partition("RESULT")[2])
    assert (apps, deleted) == ([], 204)
    assert [types.count("execute_reply") for types in traffic] == [1, 1, 1]
    assert texts[0] == "Hello, world!\n"
    assert (studio.kernels(), studio.sessions()) == ([], [])


if SEED.is_file():

    def test_seed_runs_unchanged(classic: LocalStudio, tmp_path: Path) -> None:
        run_seed(classic, tmp_path)
