"""Looks, from a kernel beside it, whether another kernel's process still runs; sent there as source text.

All kernels of a space run on one machine. A process that holds Python's lock cannot answer a question, and one
that has crashed cannot either; from beside it they can be told apart. It runs on whatever Python the image has:
standard library and ipykernel only, Python 3.6 syntax. :mod:`~airflow_provider_smstudio.studio.lookout` is the
other side.
"""

import json
import os
import socket

GONE, THERE, UNKNOWN = "gone", "there", "unknown"

_START = 19
_STATE = 0
_TIMEOUT = 5.0


def this_process() -> "str | None":
    """Name this process for others on the machine: boot, PID namespace, PID and start, or None without /proc."""
    try:
        return f"{_boot()} {_namespace()} {os.getpid()} {_stat('self')[_START]}"
    except (OSError, IndexError):
        return None


def look(process: "str | None", kernel_id: str) -> str:
    """Tell whether a kernel still runs: ``gone`` and ``there`` are certain, else ``unknown``.

    :param process: what :func:`this_process` returned in that kernel, where it is known.
    :param kernel_id: the kernel's id, by which its connection file is named.
    """
    found = by_process(process) if process else UNKNOWN
    return by_port(kernel_id) if found == UNKNOWN else found


def by_process(process: str) -> str:
    """Look for the process itself; only where it must be seen from here if it is there."""
    boot, namespace, pid, start = process.split(" ")
    try:
        if boot != _boot() or namespace != _namespace():
            return UNKNOWN
    except OSError:
        return UNKNOWN
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    except (OSError, IndexError):
        return UNKNOWN
    # Z is a process that has ended and that its parent has not asked after yet.
    return GONE if fields[_START] != start or fields[_STATE] in ("Z", "X") else THERE


def by_port(kernel_id: str) -> str:
    """Look whether anything listens where the kernel must; ours is looked at first, to see that this tells."""
    try:
        from ipykernel.connect import get_connection_file

        own = get_connection_file()
        other = os.path.join(os.path.dirname(own), f"kernel-{kernel_id}.json")
        if _listens(own) != THERE:
            return UNKNOWN
        return _listens(other)
    except Exception:
        return UNKNOWN


def _listens(connection_file: str) -> str:
    with open(connection_file) as file:
        found = json.load(file)
    if found.get("transport") != "tcp":
        return UNKNOWN
    try:
        socket.create_connection((found["ip"], found["hb_port"]), _TIMEOUT).close()
    except ConnectionRefusedError:
        return GONE
    except OSError:
        return UNKNOWN
    return THERE


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _stat(pid: str) -> "list[str]":
    with open(f"/proc/{pid}/stat") as file:
        # The command's name, in brackets, may hold anything: fields are counted after it.
        return file.read().rpartition(")")[2].split()
