"""Worker processes that run a notebook and can be killed, and what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_smstudio.studio import RunResult
from tests.helpers.bench import Bench

WORKER = Path(__file__).with_name("worker_process.py")


COUNTING = """\
import os, time
for i in range({0}):
    open('counted', 'a').write(f'{{i}} ')
    print('count', i, flush=True)
    time.sleep(0.05)
"""


FIRST = "x = 1\nopen('kernels', 'a').write(f'{__import__(\"os\").getpid()} ')\nprint('one')"


class Worker:
    """A process that runs a notebook."""

    def __init__(self, bench: Bench, **spec: Any) -> None:
        environment = bench.local.environment
        options = {
            "domain_id": environment["SMSTUDIO_DOMAIN_ID"],
            "user_profile_name": environment["SMSTUDIO_USER_PROFILE_NAME"],
            "space_name": environment.get("SMSTUDIO_SPACE_NAME"),
            "app_type": environment["SMSTUDIO_APP_TYPE"],
        }
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps({"options": options, "spec": spec})],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.rstrip("\n")

    def until(self, wanted: str) -> list[str]:
        """Read until a line that matches, of whichever cell."""
        seen: list[str] = []
        for line in self.lines():
            seen.append(line)
            if re.fullmatch(rf"(\[cell \d+\] )?{wanted}", line):
                return seen
        raise AssertionError(f"the worker ended without {wanted!r}: {seen}")

    def kill(self) -> None:
        """Kill it without a word, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def finish(self) -> str:
        """Wait for its end; return all that it had still to say."""
        return "\n".join(self.lines())


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(bench: Bench, path: str, **spec: Any) -> Worker:
        made.append(Worker(bench, **{"notebook_path": path, "run_key": bench.folder, "will_retry": True, **spec}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def text_of(bench: Bench, index: int) -> str:
    return "".join(output.get("text", "") for output in bench.executed().cells[index].outputs)


def read(bench: Bench, name: str) -> list[str]:
    return (bench.path / name).read_text().split()


def resume(bench: Bench, path: str, **spec: Any) -> RunResult:
    return bench.run(path, run_key=bench.folder, **spec)


def assert_counted_once(bench: Bench, count: int, index: int = 1) -> None:
    assert read(bench, "counted") == [str(i) for i in range(count)]
    assert text_of(bench, index) == "".join(f"count {i}\n" for i in range(count))
    assert len(read(bench, "kernels")) == 1
    bench.assert_clean()
