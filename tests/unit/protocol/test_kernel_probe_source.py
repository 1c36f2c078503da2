"""Whether another process is there, seen from beside it: on real processes and real ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import ipykernel.connect
import pytest

from airflow_provider_smstudio.studio.protocol import kernel_probe_source, kernel_record_source
from airflow_provider_smstudio.studio.protocol.kernel_probe_source import GONE, THERE, UNKNOWN

SLEEPS = "import sys, time; print(1, flush=True); time.sleep(60)"


def named(pid: int) -> str:
    """Name a process as it would name itself."""
    boot, namespace, *_ = (kernel_probe_source.this_process() or "").split(" ")
    return f"{boot} {namespace} {pid} {kernel_probe_source._stat(str(pid))[19]}"


@pytest.fixture
def other():
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_that_runs(other):
    assert kernel_probe_source.look(named(other.pid), "x") == THERE
    assert kernel_probe_source.look(kernel_probe_source.this_process(), "x") == THERE


def test_one_that_is_frozen_is_there(other):
    other.send_signal(19)
    assert kernel_probe_source.look(named(other.pid), "x") == THERE


def test_one_that_has_ended(other):
    name = named(other.pid)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert kernel_probe_source.look(name, "x") == GONE  # its parent has not asked after it
    other.wait()
    assert kernel_probe_source.look(name, "x") == GONE


def test_another_process_of_the_same_number(other):
    name = named(other.pid)
    assert kernel_probe_source.look(f"{name}0", "x") == GONE


@pytest.mark.parametrize("part", [0, 1], ids=["another machine", "another container"])
def test_what_cannot_be_seen_from_here_is_unknown(other, part):
    name = named(other.pid).split(" ")
    name[part] = "elsewhere"
    assert kernel_probe_source.look(" ".join(name), "x") == UNKNOWN


def test_the_record_names_its_process_in_the_same_way():
    assert kernel_record_source._process() == kernel_probe_source.this_process()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch):
    """A folder of connection files; the kernel that looks listens, as kernels do."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        write(tmp_path, "mine", own.getsockname()[1])
        monkeypatch.setattr(ipykernel.connect, "get_connection_file", lambda: str(tmp_path / "kernel-mine.json"))
        yield tmp_path


def write(folder: Path, kernel_id: str, port: int, transport: str = "tcp") -> None:
    ports = dict.fromkeys(("shell_port", "iopub_port", "control_port"), 1)  # where nobody listens
    found = {"transport": transport, "ip": "127.0.0.1", "hb_port": port, **ports}
    (folder / f"kernel-{kernel_id}.json").write_text(json.dumps(found))


def test_a_kernel_without_a_record_is_known_by_its_port(runtime):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write(runtime, "other", port)
        assert kernel_probe_source.look(None, "other") == THERE
    assert kernel_probe_source.look(None, "other") == GONE


def test_ports_that_do_not_tell(runtime):
    assert kernel_probe_source.look(None, "no file") == UNKNOWN
    write(runtime, "other", 9, transport="ipc")
    assert kernel_probe_source.look(None, "other") == UNKNOWN
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    write(runtime, "mine", port)  # not even the one that looks can be seen
    write(runtime, "other", port)
    assert kernel_probe_source.look(None, "other") == UNKNOWN


def test_outside_of_a_kernel_no_port_tells():
    assert kernel_probe_source.by_port("other") == UNKNOWN
