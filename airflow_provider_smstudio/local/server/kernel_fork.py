"""Start Python kernels by a fork, for a suite of tests that starts thousands of them. Linux only.

Most of a kernel's start is the import of IPython: half a second of CPU. Here one process imports it once, and each
kernel is a fork of that process. The kernel runs the same code as one of its own, with its own session, folder,
environment and arguments. It is a child of the Jupyter server, as usual: the process between the two ends at once,
and the server adopts its child.

The Jupyter server calls :func:`install` from its configuration file. The process with the imports is this module,
run as a script. It starts together with the second kernel, because a server with a single kernel gains nothing.
Until it is ready, kernels start as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import random
import runpy
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_LAUNCHER = "ipykernel_launcher"
_ADOPTION_TIMEOUT = 5.0
# A fork takes milliseconds. The server stands still meanwhile.
_FORK_TIMEOUT = 5.0


def install() -> None:
    """Let the Jupyter server of this process fork its Python kernels."""
    from jupyter_client import launcher

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    launcher.Popen = _Forks(subprocess.Popen)  # type: ignore[attr-defined, assignment]  # patched


def pid_file(connection_file: Path) -> Path:
    """Return the file that has the process ID of a forked kernel. Its command line does not name the kernel."""
    return connection_file.with_suffix(".pid")


class _Forks:
    """Takes the place of ``Popen`` where jupyter_client starts a kernel."""

    def __init__(self, popen: Any) -> None:
        self._popen = popen
        self._started = 0
        self._channel: socket.socket | None = None
        self._ready = False

    def __call__(self, command: list[str], **options: Any) -> Any:
        if command[:3] != [sys.executable, "-m", _LAUNCHER]:
            return self._popen(command, **options)
        self._started += 1
        if self._started == 2:
            self._start()
        if not self._is_ready():
            return self._popen(command, **options)
        request = {"command": command, "cwd": options.get("cwd"), "env": options["env"], "parent": os.getpid()}
        assert self._channel is not None  # noqa: S101  # _is_ready() says so
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            pid = int(self._channel.recv(100))
        except (OSError, ValueError):  # something has ended or stopped that process
            self._channel.close()
            self._ready, self._channel = False, None
            return self._popen(command, **options)
        pid_file(Path(command[command.index("-f") + 1])).write_text(str(pid))
        return _Forked(pid, command)

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_FORK_TIMEOUT)
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        if not self._ready and self._channel is not None and select.select([self._channel], [], [], 0)[0]:
            self._ready = self._channel.recv(1) == b"r"
        return self._ready


class _Forked(subprocess.Popen[bytes]):
    """A child of this process that something else has started."""

    def __init__(self, pid: int, command: list[str]) -> None:
        self.args = command
        self.pid = pid
        self.returncode = None
        self.stdin, self.stdout, self.stderr = io.BytesIO(), None, None
        self._child_created = True
        self._waitpid_lock = threading.Lock()


def _serve(channel: socket.socket) -> None:
    """Fork a kernel for each line of the channel."""
    import ipykernel.ipkernel
    import ipykernel.kernelapp  # noqa: F401

    channel.sendall(b"r")
    lines = channel.makefile("rb")
    for line in lines:
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            # Before the server can ask for the process group: it sends its signals there.
            os.setsid()
            os.write(write, str(os.getpid()).encode())
            os.close(read)
            os.close(write)
            lines.close()
            channel.close()
            _become_kernel(json.loads(line))
            return
        os.waitpid(between, 0)
        channel.sendall(os.read(read, 100))
        os.close(read)
        os.close(write)


def _become_kernel(request: dict[str, Any]) -> None:
    # ipykernel ends if its parent is not the one that the environment names.
    deadline = time.monotonic() + _ADOPTION_TIMEOUT
    while os.getppid() != request["parent"] and time.monotonic() < deadline:
        time.sleep(0.001)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    if request["cwd"]:
        os.chdir(request["cwd"])
    random.seed()
    sys.orig_argv = request["command"]
    sys.argv = ["", *request["command"][3:]]
    # `python -m` puts the folder there; the launcher takes it away.
    sys.path.insert(0, os.getcwd())
    runpy.run_module(_LAUNCHER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    del sys.path[0]  # this module's folder
    # The server has ended.
    with contextlib.suppress(ConnectionError):
        _serve(socket.socket(fileno=int(sys.argv[1])))
