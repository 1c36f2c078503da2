"""Kernel processes of this machine, found in ``/proc``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def kernel_pid(connection_file: Path) -> int:
    """The process that was started with a kernel's connection file.

    Children that the kernel forked have the same command line; the eldest is meant.

    :raises LookupError: when no such process runs.
    """
    wanted = os.fsencode(connection_file)
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Processes come and go meanwhile.
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{name}/cmdline").read_bytes():
                    found[int(name)] = _parent(name)
    for pid, parent in found.items():
        if parent not in found:
            return pid
    raise LookupError(f"no process has the connection file {connection_file}")


def _parent(pid: str) -> int:
    # The command's name, in brackets, may hold anything: fields are counted after it.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
