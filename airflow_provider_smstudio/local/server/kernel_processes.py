"""Kernel processes of this machine, found in ``/proc``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from airflow_provider_smstudio.local.server.kernel_fork import pid_file


def kernel_pid(connection_file: Path) -> int:
    """Return the ID of the process that was started with a kernel's connection file.

    Children that the kernel has forked have the same command line. Return the oldest process, which is the kernel.

    :raises LookupError: if no such process is running.
    """
    with contextlib.suppress(OSError):
        pid = int(pid_file(connection_file).read_text())
        # A process that has ended, but is not yet reaped, has no command line.
        if Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
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
