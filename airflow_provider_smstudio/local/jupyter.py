"""Real ``jupyter lab`` processes, started with the command line of SageMaker Distribution's images."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_smstudio.local import supervise
from airflow_provider_smstudio.local.wire import WireError, fetch

START_TIMEOUT = 60.0

# The server configuration that SageMaker Distribution ships.
_CONFIG = """\
c = get_config()
c.ServerApp.terminado_settings = {"shell_command": ["/bin/bash"]}
c.ServerApp.tornado_settings = {"compress_response": True}
c.FileContentsManager.delete_to_trash = False
c.FileContentsManager.always_delete_dir = True
c.ContentsManager.allow_hidden = True
"""

# Removed from the image for private spaces; a developer's environment may have them.
_NOT_IN_PRIVATE_SPACES = ("jupyter_ai", "jupyter_server_documents", "jupyter_collaboration", "jupyter_server_ydoc")

# A Studio is another machine: its kernels see nothing of the test run, of Airflow or of another Studio.
_DROPPED_PREFIXES = ("AIRFLOW", "AWS_ENDPOINT_URL", "JPY_", "JUPYTER", "PYTEST_", "SMSTUDIO_", "_AIRFLOW")
_DROPPED = ("IPYTHONDIR", "PYTHONWARNINGS", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONUNBUFFERED", "FORCE_COLOR")


class JupyterMissingError(RuntimeError):
    """JupyterLab or ipykernel is not installed in this environment."""


class ServerStartError(RuntimeError):
    """The Jupyter server ended or did not answer in time."""


def check_installed() -> None:
    """Raise :class:`JupyterMissingError` unless the ``local`` extra is installed."""
    missing = [name for name in ("jupyterlab", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        raise JupyterMissingError(
            f"The local Studio needs {' and '.join(missing)}, not installed in {sys.prefix}: "
            "pip install 'airflow-provider-smstudio[local]'"
        )


@dataclass(frozen=True)
class Layout:
    """Where a local Studio keeps its files.

    :param root: private folder, removed at the end.
    :param home: the Studio home: the server's root and the kernels' home directory.
    :param remove: folder to remove if this process dies without cleaning up; None: nothing.
    """

    root: Path
    home: Path
    remove: Path | None = None

    def make(self) -> None:
        """Create the folders and the server's configuration."""
        for name in ("config", "data", "runtime", "ipython", "xdg"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)

    def connection_file(self, kernel_id: str) -> Path:
        """The file that a kernel's process is started with."""
        return self.root / "runtime" / f"kernel-{kernel_id}.json"

    def environment(self, app_type: str) -> dict[str, str]:
        """The environment of the server and so of its kernels: this process's, minus what is ours."""
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_DROPPED_PREFIXES) and name not in _DROPPED
        }
        cache = env.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        env.update(
            # As in Studio, the kernels' home directory is the Studio home. Caches stay where they were:
            # building matplotlib's takes many seconds.
            HOME=str(self.home),
            XDG_CACHE_HOME=cache,
            XDG_CONFIG_HOME=str(self.root / "xdg"),
            JUPYTER_CONFIG_DIR=str(self.root / "config"),
            JUPYTER_DATA_DIR=str(self.root / "data"),
            JUPYTER_RUNTIME_DIR=str(self.root / "runtime"),
            IPYTHONDIR=str(self.root / "ipython"),
            # A server extension asks npm about itself, which would leave a folder in the home.
            npm_config_cache=str(self.root / "npm"),
            PATH=os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
            SAGEMAKER_APP_TYPE_LOWERCASE=app_type.lower(),
        )
        return env


def free_port() -> int:
    """A port of the loopback interface that nobody else gets for the next minute.

    A connection is made and closed from this side: the port stays in TIME_WAIT, where the system gives it to
    nobody who asks for any port while a server that asks for this one can have it.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    return port


class JupyterServer:
    """One server process with its kernels.

    :param config: what to add to the server's configuration file.
    :param args: arguments to add to the command line.
    """

    def __init__(
        self, layout: Layout, app_type: str, base: str, config: str = "", args: Sequence[str] = ()
    ) -> None:
        self.base = base
        self.port = free_port()
        self.log_path = layout.root / "server.log"
        self._layout = layout
        self._app_type = app_type
        self._config = config
        self._args = list(args)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's own URL with its base path. It asks for no login."""
        return f"http://127.0.0.1:{self.port}{self.base}"

    def _argv(self) -> list[str]:
        argv = [
            *(sys.executable, "-m", "jupyterlab"),
            *("--ip", "127.0.0.1", "--port", str(self.port), "--ServerApp.port_retries=0", "--no-browser"),
            *(f"--ServerApp.base_url={self.base}", "--ServerApp.token=", "--ServerApp.allow_origin=*"),
            # With SageMaker's "--ip 0.0.0.0" this is the default.
            "--ServerApp.allow_remote_access=True",
            f"--ServerApp.root_dir={self._layout.home}",
        ]
        if os.geteuid() == 0:
            argv.append("--allow-root")
        return [*argv, *self._args]

    def _write_config(self) -> None:
        off = {name: False for name in _NOT_IN_PRIVATE_SPACES if importlib.util.find_spec(name)}
        text = _CONFIG + (f"c.ServerApp.jpserver_extensions = {off!r}\n" if off else "") + self._config
        (self._layout.root / "config" / "jupyter_server_config.py").write_text(text)

    async def start(self) -> None:
        """Start the process and wait until it answers.

        :raises ServerStartError: with the end of its log.
        """
        self._write_config()
        remove = self._layout.remove
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", supervise.__file__, str(remove) if remove else ""),
                    *self._argv(),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._layout.home,
                env=self._layout.environment(self._app_type),
                # Ctrl-C in a terminal must reach this process only; it then ends the server.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not await self._answers():
            if self._process.poll() is not None:
                raise ServerStartError(f"the Jupyter server ended with {self._process.returncode}: {self._tail()}")
            if time.monotonic() > deadline:
                raise ServerStartError(f"the Jupyter server did not answer in {START_TIMEOUT:g} s: {self._tail()}")
            await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            status, _ = await fetch(self.port, "GET", f"{self.base}/api/status")
        except (OSError, WireError, asyncio.IncompleteReadError):
            return False
        return status == 200

    def _tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-800:].strip()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        while self._process is not None and self._process.poll() is None:
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the server as a container's end does: SIGTERM, and SIGKILL to what is left after a while."""
        await self._end(b"stop\n")

    async def kill(self) -> None:
        """Kill the server and its kernels at once."""
        await self._end(b"kill\n")

    async def _end(self, command: bytes) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101  # it was started with a pipe
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(command)
            process.stdin.flush()
        # Polled, because thread pools are already closed when this runs at the interpreter's exit.
        while process.poll() is None:
            await asyncio.sleep(0.01)
        with contextlib.suppress(OSError):
            process.stdin.close()
