"""The local Studio with a server and kernels of another interpreter."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_smstudio.local import JupyterMissingError, LocalStudio, cli
from airflow_provider_smstudio.local.server.idle import IdleShutdown
from airflow_provider_smstudio.local.server.jupyter import Layout
from airflow_provider_smstudio.local.server.server_python import ServerPython, find_server_python
from airflow_provider_smstudio.local.server.space_settings import setup_of
from tests.helpers.browser import Browser, processes_of


def make_environment(folder: Path, *, with_packages: bool) -> Path:
    """A virtual environment of its own that sees this one's packages, or none; return its interpreter."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, timeout=60)
    if with_packages:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        # JupyterLab's page, the extensions' configuration and the kernelspecs.
        for name in ("share", "etc"):
            (folder / name).symlink_to(Path(sys.prefix, name))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter of another environment, with JupyterLab and ipykernel."""
    return make_environment(tmp_path_factory.mktemp("python") / "other", with_packages=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without any packages."""
    return make_environment(tmp_path_factory.mktemp("python") / "bare", with_packages=False)


def test_server_and_kernels_run_under_it(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "JUPYTER_PATH"):
        monkeypatch.setenv(name, sys.prefix)
    with LocalStudio(server_python=other) as studio, Browser(studio) as browser:
        kernel = browser.post("api/kernels", {"name": "python3"})
        with browser.channels(kernel["id"]) as channels:
            code = (
                "import os, shutil, sys\n"
                "print(sys.executable, sys.prefix, shutil.which('python'), sep='\\n')\n"
                "print([n for n in ('VIRTUAL_ENV', 'PYTHONPATH', 'JUPYTER_PATH') if n in os.environ])"
            )
            told = channels.run(code).splitlines()
        assert told == [str(other), str(other.parent.parent), str(other), "[]"]
        assert Path(f"/proc/{studio.kernel_pid(kernel['id'])}/exe").resolve() == other.resolve()
        commands = [
            Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in processes_of(studio.home.parent)
        ]
        (server,) = (line for line in commands if line[1:3] == ["-m", "jupyterlab"])
        assert server[0] == str(other)
        # A server that is started anew is of the same environment.
        studio.restart_server()
        kernel = browser.post("api/kernels", {"name": "python3"})
        with browser.channels(kernel["id"]) as channels:
            assert channels.run("import sys; print(sys.executable)") == f"{other}\n"


def test_the_command_line_passes_both_on(other: Path) -> None:
    code = "import os; print(os.environ['SMSTUDIO_APP_TYPE'])"
    options = ["--server-python", str(other), "--space-kind", "private", "--app-status", "Stopped"]
    command = [sys.executable, "-m", "airflow_provider_smstudio.local.cli", "run", *options]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "JupyterLab\n"), done.stderr


def test_the_command_line_makes_such_a_studio(other: Path) -> None:
    options = ["up", "--server-python", str(other), "--space-kind", "shared"]
    studio = cli._studio(cli._parser().parse_args(options))
    assert (studio.space_kind, studio._server_python) == ("shared", str(other))
    studio = cli._studio(cli._parser().parse_args(["up"]))
    assert (studio.space_kind, studio._server_python) == ("stock", None)


def test_a_private_space_starts_with_this_environment() -> None:
    with LocalStudio(space_kind="private") as studio, Browser(studio) as browser:
        kernel = browser.post("api/kernels", {"name": "python3"})
        with browser.channels(kernel["id"]) as channels:
            code = "import os; print(os.environ['SAGEMAKER_SPACE_TYPE_LOWERCASE'])"
            assert channels.run(code) == "private\n"


def test_what_an_interpreter_has_is_asked_of_it(other: Path) -> None:
    own, found, same = find_server_python(None), find_server_python(other), find_server_python(sys.executable)
    assert (own.command, own.foreign, own.image) == (sys.executable, False, "")
    assert (found.command, found.bin, found.foreign) == (str(other), other.parent, True)
    # One's own by name is no other one.
    assert (same.foreign, same.packages) == (False, own.packages)
    assert found.packages == own.packages
    image = other.parent.parent / "smstudio-image.txt"
    image.write_text("4.4.1\n")
    try:
        assert find_server_python(other).image == "4.4.1"
    finally:
        image.unlink()


def test_the_environment_of_another_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("VIRTUAL_ENV", "/some/venv")
    monkeypatch.setenv("PYTHONHOME", "/some/python")
    monkeypatch.setenv("PATH", os.pathsep.join([own, "/some/venv/bin", "/usr/bin"]))
    layout, setup = Layout(tmp_path, tmp_path / "home"), setup_of("shared", {})
    python = ServerPython("/image/bin/python", Path("/image/bin"), True, {}, "")
    env = layout.environment("JupyterLab", python, setup)
    ours = [own] if sys.prefix == sys.base_prefix else []
    assert env["PATH"].split(os.pathsep) == ["/image/bin", *ours, "/usr/bin"]
    assert not {"VIRTUAL_ENV", "PYTHONHOME"} & set(env)
    assert env["SAGEMAKER_SPACE_TYPE_LOWERCASE"] == "shared"
    env = layout.environment("JupyterLab", ServerPython("python", Path(own), False, {}, ""), setup)
    assert env["PATH"].split(os.pathsep) == [own, own, "/some/venv/bin", "/usr/bin"]
    assert env["VIRTUAL_ENV"] == "/some/venv"


def wrong(tmp_path: Path, what: str) -> Path:
    """A file that is no Python."""
    path = tmp_path / "python"
    if what == "folder":
        path.mkdir()
    elif what != "nothing":
        path.write_text("#!/bin/sh\necho 'no such option' >&2; exit 3\n" if what != "silent" else "#!/bin/sh\n")
        path.chmod(0o644 if what == "plain" else 0o755)
    return path


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("nothing", "there is no file {}"),
        ("folder", "{} is not a file"),
        ("plain", "{} is not executable"),
        ("script", "{} is not a working Python (no such option)"),
        ("silent", "{} is not a working Python"),
    ],
)
def test_no_python(what: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = wrong(tmp_path, what)
    with pytest.raises(ValueError, match="server_python") as caught:
        LocalStudio(server_python=path).start()
    remedy = "; name the file of a Python that has jupyterlab and ipykernel, such as /opt/conda/bin/python"
    assert text.format(path) in str(caught.value)
    assert str(caught.value).endswith(remedy)
    assert cli.main(["run", "--server-python", str(path), "--", "true"]) == 2
    assert capsys.readouterr().err == f"{caught.value}\n"


def test_a_python_without_jupyterlab(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"server_python {bare} lacks jupyterlab and ipykernel: {bare} -m pip install jupyterlab ipykernel"
    with pytest.raises(JupyterMissingError) as caught:
        LocalStudio(server_python=bare).start()
    assert str(caught.value) == text
    assert cli.main(["run", "--server-python", str(bare), "--", "true"]) == 1
    assert capsys.readouterr().err == f"{text}\n"


def test_wrong_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="space_kind must be one of stock, private, shared, not 'public'"):
        LocalStudio(space_kind="public")
    with pytest.raises(ValueError, match="for the flavour jupyterlab only"):
        LocalStudio("classic", space_kind="private")
    with pytest.raises(ValueError, match="for the flavour jupyterlab only"):
        LocalStudio("classic", server_python=sys.executable)
    assert cli.main(["run", "--flavour", "classic", "--space-kind", "shared", "--", "true"]) == 2
    assert "for the flavour jupyterlab only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["run", "--space-kind", "public", "--", "true"])
    assert "invalid choice: 'public'" in capsys.readouterr().err


async def _missing(*_: object) -> tuple[int, object]:
    return 404, "<html>"


def test_a_server_that_does_not_tell_whether_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of v1 have no /api/idle; the app then stays."""
    monkeypatch.setattr("airflow_provider_smstudio.local.server.idle.fetch", _missing)
    slot = SimpleNamespace(port=1, base="/jupyterlab/default")
    assert asyncio.run(IdleShutdown(slot, SimpleNamespace())._is_idle(0.0)) is False  # type: ignore[arg-type]
