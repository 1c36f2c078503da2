"""Kernel processes of this machine, found in ``/proc``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def kernel_pid(connection_file: Path) -> int:
    """Return the ID of the process that was started with a kernel's connection file.

    Children that the kernel has forked have the same command line. Return the oldest process, which is the kernel.

    :raises LookupError: if no such process is running.
    """
    wanted = os.fsencode(connection_file)
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Processes may start and end during the loop.
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{name}/cmdline").read_bytes():
                    found[int(name)] = _parent(name)
    for pid, parent in found.items():
        if parent not in found:
            return pid
    raise LookupError(f"no process has the connection file {connection_file}")


def _parent(pid: str) -> int:
    # The command's name, in brackets, may contain anything, so the fields are counted after it.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
