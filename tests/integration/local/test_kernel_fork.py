"""Kernels that are forks, as most of these tests have them, are like others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.browser import Browser
from tests.helpers.faults import wait_for


@pytest.fixture(scope="module")
def studio() -> Iterator[LocalStudio]:
    with LocalStudio() as studio:
        yield studio


@pytest.fixture(scope="module")
def browser(studio: LocalStudio) -> Iterator[Browser]:
    (studio.home / "work").mkdir()
    with Browser(studio) as logged_in:
        yield logged_in


@pytest.fixture(scope="module")
def usual_id(studio: LocalStudio, browser: Browser) -> str:
    """The first kernel, which starts as usual; the next ones, once another one was a fork, are forks."""
    usual_id = new_kernel(browser)
    assert not is_fork(studio, usual_id)
    wait_for(lambda: is_fork(studio, new_kernel(browser)))
    return usual_id


@pytest.fixture
def kernel_id(studio: LocalStudio, browser: Browser, usual_id: str) -> str:
    kernel_id = new_kernel(browser)
    assert is_fork(studio, kernel_id)
    return kernel_id


def new_kernel(browser: Browser) -> str:
    return str(browser.post("api/kernels", {"name": "python3", "path": "work"})["id"])


def is_fork(studio: LocalStudio, kernel_id: str) -> bool:
    command = Path(f"/proc/{studio.kernel_pid(kernel_id)}/cmdline").read_bytes()
    return b"kernel_fork.py" in command


SHOWN = """
import os, sys
print(os.getcwd(), sorted(name for name in os.environ if name[:4] != "JPY_"), os.environ["HOME"])
print(os.getppid() == int(os.environ["JPY_PARENT_PID"]), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print(__name__, sys.argv[0], sys.path, sys.flags, sys.executable, sys.orig_argv[:4], get_ipython().__class__)
"""


def test_it_is_like_the_usual_one(browser: Browser, usual_id: str, kernel_id: str) -> None:
    told = []
    for number in (usual_id, kernel_id):
        with browser.channels(number) as channels:
            told.append(channels.run(SHOWN).splitlines())
    assert told[0] == told[1]
    assert told[0][1] == "True True True"


def test_it_is_random(studio: LocalStudio, browser: Browser, kernel_id: str) -> None:
    told = []
    for number in (kernel_id, new_kernel(browser)):
        with browser.channels(number) as channels:
            told.append(channels.run("import random; print(random.random())"))
    assert told[0] != told[1]


def test_it_can_be_interrupted_and_restarted(studio: LocalStudio, browser: Browser, kernel_id: str) -> None:
    before = studio.kernel_pid(kernel_id)
    with browser.channels(kernel_id) as channels:
        channels.run("x = 1")
        running = channels.execute("import time; print('on', flush=True); time.sleep(60)")
        wait_for(lambda: channels.receive()["msg_type"] == "stream")
        browser.call("POST", f"api/kernels/{kernel_id}/interrupt")
        assert "KeyboardInterrupt" in str(channels.until_done(running))
    browser.call("POST", f"api/kernels/{kernel_id}/restart")
    assert studio.kernel_pid(kernel_id) != before
    with browser.channels(kernel_id) as channels:
        assert channels.run("print('x' in globals())") == "False\n"


def test_its_death_is_seen_and_it_is_replaced(studio: LocalStudio, browser: Browser, kernel_id: str) -> None:
    before = studio.kernel_pid(kernel_id)
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return studio.kernel_pid(kernel_id) != before
        except LookupError:
            return False

    wait_for(replaced)
    with browser.channels(kernel_id) as channels:
        assert channels.run("print(1)") == "1\n"


def test_kernels_start_when_the_process_that_forks_is_gone(
    studio: LocalStudio, browser: Browser, kernel_id: str
) -> None:
    status = Path(f"/proc/{studio.kernel_pid(kernel_id)}/status").read_text()
    server = int(status.partition("PPid:")[2].split()[0])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    # The oldest of them; the others are its forks, the kernels.
    forking = min(int(pid) for pid in children if b"kernel_fork.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(forking, signal.SIGKILL)
    another = new_kernel(browser)
    assert not is_fork(studio, another)
    with browser.channels(another) as channels:
        assert channels.run("print(1)") == "1\n"
