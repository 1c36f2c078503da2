"""Run one command, and make sure that none of its processes outlives the starter.

This is executed as a script, with the standard library only::

    python -I -S supervise.py REMOVE_DIR COMMAND ...

The starter holds the other end of standard input. The line ``stop`` ends the command with SIGTERM. After a grace
time the script kills the remaining processes. The line ``kill`` kills all processes at once. The end of the input
means that the starter is gone: the script kills all processes and deletes REMOVE_DIR (unless it is empty). "All
processes" means every descendant. On Linux this includes orphans and processes in a session of their own, such as
Jupyter's kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _parents() -> dict[int, int]:
    """Return every process of the machine with the ID of its parent."""
    found: dict[int, int] = {}
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as stat:
                    # The command's name, in brackets, may contain anything, so the fields are counted after it.
                    found[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
        return found
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)  # noqa: S607
    for line in listing.stdout.splitlines():
        pid, ppid = line.split()
        found[int(pid)] = int(ppid)
    return found


def _descendants() -> list[int]:
    parents = _parents()
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family - {os.getpid()})


class Supervisor:
    """Starts and supervises the command, in one thread."""

    def __init__(self, argv: list[str]) -> None:
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._killed = False
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            # preexec_fn is safe here: this process has one thread.
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._code: int | None = None

    def _on_signal(self, *_: object) -> None:
        self._killed = True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._child.pid:
                    self._code = os.waitstatus_to_exitcode(status)

    def _kill_all(self) -> None:
        give_up = time.monotonic() + 5
        while (pids := _descendants()) and time.monotonic() < give_up:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self._reap()

    def run(self) -> tuple[int, bool]:
        """Wait for the end. Return the command's exit code, and whether the starter is gone."""
        orphaned = self._watch()
        self._say_why(orphaned)
        self._kill_all()
        self._child.returncode = self._code if self._code is not None else -signal.SIGKILL
        code = self._child.returncode
        return (code if code >= 0 else 128 - code), orphaned

    def _say_why(self, orphaned: bool) -> None:
        """Write into the command's log what has ended it, unless it ended by itself."""
        if self._code is None:
            why = (
                "a signal to the supervisor"
                if self._killed
                else "the end of its starter"
                if orphaned
                else "request"
            )
        elif self._code < 0:
            why = f"signal {-self._code}"
        else:
            return
        with contextlib.suppress(OSError):
            os.write(2, f"[supervise] the command was ended by {why}\n".encode())

    def _watch(self) -> bool:
        """Wait until all processes must end. Return True if the starter is gone."""
        deadline: float | None = None
        pending = b""
        while self._code is None and not self._killed:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([0, self._wake_read], [], [], wait)
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            self._reap()
            if 0 in ready:
                data = os.read(0, 4096)
                if not data:
                    return True
                pending += data
            if b"kill\n" in pending or (deadline is not None and time.monotonic() >= deadline):
                return False
            if b"stop\n" in pending and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child.pid, signal.SIGTERM)
        return False


def main() -> int:
    """Supervise the command from the command line."""
    code, orphaned = Supervisor(sys.argv[2:]).run()
    if orphaned and sys.argv[1]:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
