"""The command ``smstudio-local``: exit codes, signals, and nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_smstudio.local import cli
from tests.helpers.browser import processes_of

CLI = [sys.executable, "-m", "airflow_provider_smstudio.local.cli"]

# Leaves a session with its kernel on the server, and tells where the Studio keeps its files.
LEAVE_SESSION = """
import os, sys, boto3, requests
link = boto3.client("sagemaker").create_presigned_domain_url(
    DomainId=os.environ["SMSTUDIO_DOMAIN_ID"],
    UserProfileName=os.environ["SMSTUDIO_USER_PROFILE_NAME"],
    SpaceName=os.environ["SMSTUDIO_SPACE_NAME"],
)["AuthorizedUrl"]
http = requests.Session()
http.get(link)
xsrf = next(c.value for c in http.cookies if c.name == "_xsrf")
body = {"path": "left.ipynb", "name": "left", "type": "notebook", "kernel": {"name": "python3"}}
base = link.partition("/auth?")[0] + "/jupyterlab/default"
assert http.post(base + "/api/sessions", json=body, headers={"X-XSRFToken": xsrf}).status_code == 201
print(os.environ["SMSTUDIO_HOME"], flush=True)
sys.exit(7)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Private folders of the tested Studios go here, so that leftovers show."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    deadline = time.monotonic() + 5
    while left := [*processes_of(f"{tmp_path}/smstudio-local-"), *tmp_path.glob("smstudio-local-*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_run_reports_what_was_left_and_passes_the_exit_code() -> None:
    done = run("run", "--", sys.executable, "-c", LEAVE_SESSION)
    assert done.returncode == 7, done.stderr
    assert done.stderr == "the local Studio reports 1 sessions and 1 kernels\n"
    assert not Path(done.stdout.strip()).exists()


def test_run_without_anything_left(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    script = (
        "import os; print(os.environ['SMSTUDIO_HOME'], os.environ['SMSTUDIO_APP_TYPE']); os.kill(os.getpid(), 9)"
    )
    done = run("run", "--flavour", "classic", "--home", str(home), "--", sys.executable, "-c", script)
    assert done.stderr == "the local Studio reports 0 sessions and 0 kernels\n"
    assert done.stdout == f"{home} JupyterServer\n"
    assert done.returncode == 128 + 9
    # A folder of the user's own stays, with nothing added.
    assert list(home.iterdir()) == []


def test_run_with_a_stopped_app() -> None:
    done = run("run", "--app-status", "Stopped", "--switch", "unauthenticated=302", "--", "true")
    assert done.returncode == 0
    assert done.stderr == "the local Studio reports 0 sessions and 0 kernels; its app is Deleted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run"], 2, "run needs a command"),
        (["run", "--app-status", "Missing", "--", "/no/such/command"], 127, "cannot run /no/such/command"),
        (["run", "--app-status", "Missing", "--", "/"], 126, "cannot run /"),
        (["run", "--switch", "nonsense=1", "--", "true"], 2, "'nonsense=1' is not NAME=VALUE"),
        (["run", "--switch", "unauthenticated=404", "--", "true"], 2, "must be one of 403, 302, 200-html"),
    ],
)
def test_mistakes(arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        returned: object = cli.main(arguments)
    except SystemExit as exit_of_argparse:
        returned = exit_of_argparse.code
    out, err = capsys.readouterr()
    assert (returned, out) == (code, "")
    assert text in err


def test_jupyterlab_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jupyterlab" else object())
    assert cli.main(["run", "--", "true"]) == 1
    assert "pip install 'airflow-provider-smstudio[local]'" in capsys.readouterr().err


def test_variables_that_would_mislead_boto3_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "real")
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    script = "import boto3; print(len(boto3.client('sagemaker').list_spaces()['Spaces']))"
    done = run("run", "--app-status", "Missing", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_passes_signals_on(number: signal.Signals) -> None:
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [*CLI, "run", "--app-status", "Missing", "--", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=20) == 9


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)],
    ids=["INT", "TERM", "KILL"],
)
def test_up_serves_until_it_ends_however_it_ends(number: signal.Signals, code: int, scratch: Path) -> None:
    """Also after SIGKILL no server, no kernel and no child of a kernel remains (see the fixture)."""
    status = "Missing" if number == signal.SIGTERM else "InService"
    with subprocess.Popen(
        [*CLI, "up", "--app-status", status], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "serving; interrupt to stop\n"
        exported = [process.stdout.readline() for _ in range(10)]
        env = dict(shlex.split(line)[1].partition("=")[::2] for line in exported)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", env["AWS_ENDPOINT_URL_SAGEMAKER"])
        assert env["SMSTUDIO_SPACE_NAME"] == "demo-space"
        if number == signal.SIGKILL:
            left = subprocess.run(
                [sys.executable, "-c", LEAVE_SESSION], env={**os.environ, **env}, capture_output=True, check=False
            )
            assert left.returncode == 7, left.stderr
            assert len(processes_of(scratch)) >= 3  # supervisor, server, kernel
        process.send_signal(number)
        assert process.wait(timeout=20) == code


def test_interrupted_while_starting() -> None:
    with subprocess.Popen([*CLI, "run", "--", "sleep", "60"], stderr=subprocess.PIPE, text=True) as process:
        threads = Path(f"/proc/{process.pid}/task")
        while not any((thread / "children").read_text() for thread in threads.iterdir()):
            time.sleep(0.01)  # the Jupyter server's process comes first, and takes a second to serve
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
