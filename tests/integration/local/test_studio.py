"""The local Studio as an object: several at once, repeated stops, forks, and no process left."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from airflow_provider_smstudio.local import JupyterMissingError, LocalStudio
from airflow_provider_smstudio.local.server import jupyter
from tests.helpers.browser import Browser, processes_of


def test_two_at_once_and_nothing_left() -> None:
    with LocalStudio() as one, LocalStudio(domain_id="d-two", app_status="Stopped") as two:
        assert one.endpoint_url != two.endpoint_url
        assert two.client().describe_domain(DomainId="d-two")["Status"] == "InService"
        with pytest.raises(one.client().exceptions.ResourceNotFound):
            one.client().describe_domain(DomainId="d-two")
        with Browser(one) as browser:
            kernel = browser.post("api/kernels", {"name": "python3"})
            # Not even what a cell left in the background, in a session of its own.
            code = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
            with browser.channels(kernel["id"]) as channels:
                sleeper = int(channels.run(code))
            assert [k["id"] for k in one.kernels()] == [kernel["id"]]
            # A login is valid at one door only.
            assert (
                requests.get(
                    f"{two.door_url}/jupyterlab/default/api/kernels", cookies=browser.http.cookies, timeout=5
                ).status_code
                == 403
            )
        root = one.home.parent
        assert len(processes_of(root)) >= 3
        started = time.monotonic()
        one.stop()
        assert time.monotonic() - started < 2
        assert processes_of(root) == []
        assert not Path(f"/proc/{sleeper}").exists()
        assert not root.exists()
        one.stop()
        with pytest.raises(RuntimeError, match="not running"):
            one.kernels()


def test_everything_listens_on_the_loopback_interface_only(spaces: LocalStudio) -> None:
    ports = {
        int(url.rpartition(":")[2].partition("/")[0])
        for url in (spaces.endpoint_url, spaces.door_url, spaces.server_url)
    }
    listening: dict[int, set[str]] = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            address, _, digits = line.split()[1].rpartition(":")
            if line.split()[3] == "0A":
                listening.setdefault(int(digits, 16), set()).add(address)
    for port in ports:
        assert listening[port] == {"0100007F"}


def test_given_home_stays(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with LocalStudio(home=tmp_path, app_status="Missing") as studio:
        assert studio.environment["SMSTUDIO_HOME"] == str(tmp_path)
        with pytest.raises(RuntimeError, match="already running"):
            studio.start()
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_server_that_cannot_start() -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        LocalStudio(server_args=["--ServerApp.contents_manager_class=nonsense.NoSuch"]).start()


def test_a_port_that_somebody_has_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        free = jupyter.free_port
        monkeypatch.setattr(jupyter, "free_port", lambda: ports.pop() if ports else free())
        with LocalStudio() as studio:
            assert studio.kernels() == []
        assert ports == []


def test_no_connection_gets_the_port_of_a_kernel_that_starts(spaces: LocalStudio) -> None:
    with Browser(spaces) as browser:
        kernel = browser.post("api/kernels", {"name": "python3"})["id"]
        code = "import ipykernel; print(open(ipykernel.get_connection_file()).read())"
        with browser.channels(kernel) as channels:
            ports = {name: port for name, port in json.loads(channels.run(code)).items() if name.endswith("_port")}
        assert len(ports) == 5
        assert max(ports.values()) < 32_000  # below what Linux gives to connections
        browser.call("DELETE", f"api/kernels/{kernel}")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JupyterMissingError, match="jupyterlab and ipykernel"):
        LocalStudio().start()


def test_a_forked_child_leaves_the_studio_alone(spaces: LocalStudio) -> None:
    code = (
        "import os, sys, requests\n"
        "from airflow_provider_smstudio.local import LocalStudio\n"
        "studio = LocalStudio().start()\n"  # never stopped: the end of the interpreter has to do it
        "child = os.fork()\n"
        "if child == 0: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert studio.home.exists()\n"
        "assert requests.get(studio.server_url + '/api/status').status_code == 200\n"
        "print(studio.home)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert processes_of(Path(done.stdout.strip()).parent) == []
    assert not Path(done.stdout.strip()).parent.exists()


def test_secrets_are_kept_out_of_logs(spaces: LocalStudio, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="airflow_provider_smstudio"), Browser(spaces) as browser:
        browser.get("api/kernels")
        secrets = spaces.secrets()
        assert browser.xsrf in secrets
    ours = [
        record.getMessage() for record in caplog.records if record.name.startswith("airflow_provider_smstudio")
    ]
    assert not [message for message in ours for secret in secrets if secret in message]
    # The server behind the door never saw a login link.
    assert not [secret for secret in secrets if secret.startswith("eyJ") and secret in spaces.server_log]


def test_ports_are_free_again(spaces: LocalStudio) -> None:
    with LocalStudio(app_status="Missing") as studio:
        port = int(studio.door_url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
