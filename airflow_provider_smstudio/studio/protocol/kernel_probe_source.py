"""Check from a second kernel whether another kernel's process still runs. The package sends this file as source.

All kernels of a space run on one machine. A process that holds Python's lock cannot answer a request, and a
crashed process cannot answer either. A second kernel can see the difference. This code runs on any Python of an
image: it uses only the standard library, ipykernel and Python 3.6 syntax.
:mod:`~airflow_provider_smstudio.studio.jupyter.kernel_probe` is the other side.
"""

import json
import os
import socket
from typing import Any

GONE, THERE, UNKNOWN = "gone", "there", "unknown"

_START = 19
_STATE = 0
_TIMEOUT = 5.0
_WAKE_MS = 1000


def this_process() -> "str | None":
    """Return this process's name on the machine: boot, PID namespace, PID and start, or None without /proc."""
    try:
        return f"{_boot()} {_namespace()} {os.getpid()} {_stat('self')[_START]}"
    except (OSError, IndexError):
        return None


def look(process: "str | None", kernel_id: str) -> str:
    """Return whether a kernel still runs: ``gone`` and ``there`` are certain, otherwise ``unknown``.

    :param process: the result of :func:`this_process` in that kernel, if it is known.
    :param kernel_id: the kernel's id, which is part of the name of its connection file.
    """
    found = by_process(process) if process else UNKNOWN
    if found == UNKNOWN:
        found = by_port(kernel_id)
    if found != GONE:
        wake(kernel_id)
    return found


def wake(kernel_id: str) -> bool:
    """Connect to a kernel as a client does and send a ``kernel_info_request``. Return whether it answered.

    Kernels of ipykernel 7.0 to 7.3 may leave messages unread until the next connection (ipython/ipykernel#1554).
    On some servers a new websocket makes no new connection to the kernel.
    """
    try:
        import zmq
        from jupyter_client.session import Session

        found = _connection(kernel_id)
        session = Session(key=found["key"].encode(), signature_scheme=found["signature_scheme"])
        with zmq.Context() as context:
            answered = False
            for name in ("control_port", "shell_port"):
                with context.socket(zmq.DEALER) as channel:
                    channel.linger = 0
                    channel.connect(f"{found['transport']}://{found['ip']}:{found[name]}")
                    session.send(channel, "kernel_info_request", {})
                    answered = bool(channel.poll(_WAKE_MS)) or answered
            return answered
    except Exception:
        return False


def by_process(process: str) -> str:
    """Look for the process itself. The result is certain only on the same boot and in the same PID namespace."""
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
    # Z: the process has ended, but its parent has not read its exit status yet.
    return GONE if fields[_START] != start or fields[_STATE] in ("Z", "X") else THERE


def by_port(kernel_id: str) -> str:
    """Check whether a process listens on the kernel's ports. Check this kernel first, to test the method."""
    try:
        if _listens(_connection()) != THERE:
            return UNKNOWN
        return _listens(_connection(kernel_id))
    except Exception:
        return UNKNOWN


def _connection(kernel_id: "str | None" = None) -> "dict[str, Any]":
    """Read a kernel's connection file, in the folder of this kernel's file; by default this kernel's own file."""
    from ipykernel.connect import get_connection_file

    path = get_connection_file()
    if kernel_id is not None:
        path = os.path.join(os.path.dirname(path), f"kernel-{kernel_id}.json")
    with open(path) as file:
        return dict(json.load(file))


def _listens(found: "dict[str, Any]") -> str:
    if found.get("transport") != "tcp":
        return UNKNOWN
    for name in ("hb_port", "shell_port", "iopub_port", "control_port"):
        try:
            socket.create_connection((found["ip"], found[name]), _TIMEOUT).close()
            return THERE
        except ConnectionRefusedError:
            continue
        except OSError:
            return UNKNOWN
    return GONE


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _stat(pid: str) -> "list[str]":
    with open(f"/proc/{pid}/stat") as file:
        # The command's name, in brackets, may contain any character, so the fields are counted after it.
        return file.read().rpartition(")")[2].split()
