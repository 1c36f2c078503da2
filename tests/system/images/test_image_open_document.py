"""A person has the executed notebook open while a run writes it, on an image's own server."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Protocol, TypeVar

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from airflow_provider_smstudio.studio.jupyter.rest import save_request
from tests.helpers import HELPERS
from tests.helpers.bench import Bench, client_of
from tests.helpers.faults import printed, set_options, wait_for
from tests.helpers.image_bench import papermill, state_of, stays

_T = TypeVar("_T")

GUARD = "airflow_provider_smstudio.studio.runs.output_guard"
CHANGED = "another user or program has changed the executed notebook"

PROSE, TYPED = "What this is about.", "What a person adds."

PRINTS = "import time\nfor i in range(30):\n    print('line', i, flush=True)\n    time.sleep(0.1)"
LINES = "".join(f"line {i}\n" for i in range(30))

SILENCE = 8
"""For how long the run saves nothing, in seconds: a room is opened, and saves, in it."""

AFTER = 3.0
"""For how long a room might still write an older state, in seconds: it saves within a second or two."""


class Person(Protocol):
    """Somebody who has the executed notebook open."""

    def type(self) -> None:
        """Add a line to the prose."""

    def leave(self) -> str:
        """Close it; return the prose as it was shown last."""


class RoomPerson:
    """Has it open in a room of a collaborative space; see ``person.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def type(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{TYPED}\n")
        self._process.stdin.flush()
        assert self.hear() == "typed"

    def leave(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.hear()


class SavingPerson:
    """Has it open in a page of its own, which saves all that it holds."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def type(self) -> None:
        studio = client_of(self._bench.local)
        try:
            path = output_of(self._bench)
            notebook = studio.server.read_executed(path)
            notebook.cells[0].source += TYPED
            studio.server.write_notebook(path, save_request(notebook))
        finally:
            studio.close()

    def leave(self) -> str:
        return str(self._bench.executed().cells[0].source)


@contextmanager
def person_at(bench: Bench, python: str) -> Iterator[Person]:
    """Let a person open the executed notebook, in a room where the space has rooms."""
    command = [python, str(HELPERS / "person.py"), bench.local.server_url, output_of(bench)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        person = RoomPerson(process)
        try:
            word = person.hear()
            assert word in ("open", "no room")
            yield person if word == "open" else SavingPerson(bench)
        finally:
            process.kill()


def output_of(bench: Bench) -> str:
    """Return the executed notebook's path below the home."""
    # Beside it is, while it is written, a copy whose name begins with a dot.
    (found,) = (bench.path / "work-runs").glob("[!.]*.ipynb")
    return str(found.relative_to(bench.local.home))


class Observed:
    """A run with all that it saves."""

    def __init__(self, bench: Bench, patch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.saved: list[dict[str, Any]] = []
        server = bench.studio.server
        write = server.write_notebook

        def keep(path: str, body: bytes | BinaryIO, *, timeout: float = 300) -> str | None:
            assert isinstance(body, bytes)
            self.saved.append(json.loads(body)["content"])
            return write(path, body, timeout=timeout)

        patch.setattr(server, "write_notebook", keep)

    def run(self, act: Callable[[], _T]) -> _T:
        """Run a notebook that prints, is silent for some seconds and prints again.

        :param act: what a person does while it is silent, in a thread of its own. Not before: a room that opens
            while the file is just being written finds it empty, and jupyter_server_documents' then never loads it.
        """
        path = self.bench.write(new_markdown_cell(PROSE), PRINTS, stays(SILENCE), PRINTS)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._when_silent, act)
            self.bench.run(path)
            return future.result(20)

    def _when_silent(self, act: Callable[[], _T]) -> _T:
        wait_for((self.bench.path / "began").exists, 60)
        time.sleep(1.3)  # for the save of what it printed
        return act()

    def assert_ours(self) -> None:
        """The file is what the run saved last."""
        assert len(self.saved) > 6
        # A file holds texts line by line: both are read from such a one.
        saved = nbformat.reads(nbformat.writes(nbformat.from_dict(self.saved[-1])), as_version=4)
        assert self.bench.executed(output_of(self.bench)) == saved
        assert state_of(self.bench) == "completed"
        assert papermill(self.bench) == ["completed"] * 3
        assert printed(self.bench) == (LINES, "on\n", LINES)


@pytest.fixture
def python(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--server-python"))


@pytest.fixture
def observed(impatient: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Observed:
    caplog.set_level(logging.INFO, GUARD)
    set_options(monkeypatch, autosave_interval=0.8)
    return Observed(impatient, monkeypatch)


class TestOpenDocument:
    @pytest.mark.ci
    def test_a_person_saves_it(self, observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
        observed.run(SavingPerson(observed.bench).type)
        observed.assert_ours()
        assert caplog.text.count(CHANGED) == 1

    def test_a_person_types(self, observed: Observed, python: str, caplog: pytest.LogCaptureFixture) -> None:
        with ExitStack() as stack:

            def act() -> Person:
                person = stack.enter_context(person_at(observed.bench, python))
                person.type()
                return person

            person = observed.run(act)
            observed.assert_ours()
            time.sleep(AFTER)
            observed.assert_ours()
            assert person.leave() == PROSE
        assert caplog.text.count(CHANGED) == 1

    def test_a_person_looks_on(self, observed: Observed, python: str, caplog: pytest.LogCaptureFixture) -> None:
        with ExitStack() as stack:
            person = observed.run(lambda: stack.enter_context(person_at(observed.bench, python)))
            observed.assert_ours()
            time.sleep(AFTER)
            observed.assert_ours()
            assert person.leave() == PROSE
        assert CHANGED not in caplog.text
