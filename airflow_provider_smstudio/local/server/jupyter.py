"""Real ``jupyter lab`` processes, started with the command line of the images of SageMaker Distribution."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_smstudio.local.server import supervise
from airflow_provider_smstudio.local.server.server_python import JupyterMissingError, ServerPython
from airflow_provider_smstudio.local.server.space_settings import Setup
from airflow_provider_smstudio.local.transport.http import HttpError, fetch

__all__ = ["JupyterMissingError", "JupyterProcess", "Layout", "ServerStartError"]

START_TIMEOUT = 60.0
# The first start in an image's environment compiles thousands of modules.
FOREIGN_START_TIMEOUT = 120.0
# Another process can take a free port before the server opens it, even only for an outgoing connection.
_PORTS_TRIED = 3
_ANSWER_TIMEOUT = 5.0

# The server configuration that SageMaker Distribution ships.
_CONFIG = """\
c = get_config()
c.ServerApp.terminado_settings = {"shell_command": ["/bin/bash"]}
c.ServerApp.tornado_settings = {"compress_response": True}
c.FileContentsManager.delete_to_trash = False
c.FileContentsManager.always_delete_dir = True
c.ContentsManager.allow_hidden = True
"""

# Use kernel ports below those that the system gives to connections. jupyter_client chooses a free port, and the
# kernel opens it a second later. If tests make many connections, one of them may have the port by then. The kernel
# then ends, or continues and never answers (measured: ipykernel 7.3 without its iopub port).
_KERNEL_PORTS = """\
import random
import socket
from jupyter_client.connect import LocalPortCache

def find_available_port(self, ip):
    while True:
        port = random.randrange(10_000, 32_000)
        if port not in self.currently_used_ports:
            try:
                with socket.create_server((ip, port)):
                    pass
            except OSError:
                continue
            self.currently_used_ports.add(port)
            return port

LocalPortCache.find_available_port = find_available_port
"""

# See kernel_fork. The variable is for this project's own tests.
_FORK_KERNELS = """\
from airflow_provider_smstudio.local.server import kernel_fork
kernel_fork.install()
"""
FORK_KERNELS_VARIABLE = "SMSTUDIO_LOCAL_FORK_KERNELS"

# An image requests this store by an argument. Here it depends on the class: from 2.0 on, the packages on PyPI have
# a class of the wrong type, and the server would not start. An image keeps the database in /opt/db. Here it is in
# our own folder.
_SHARED_STORE = """\
try:
    from sagemaker_jupyterlab_extension_common.ydoc_override.ydoc import MySQLiteYStore
    try:
        from jupyter_server_ydoc.app import YDocExtension
    except ImportError:
        from jupyter_collaboration.app import YDocExtension
    if issubclass(MySQLiteYStore, YDocExtension.ystore_class.klass):
        MySQLiteYStore.db_path = {path!r}
        c.YDocExtension.ystore_class = MySQLiteYStore
except ImportError:
    pass
"""

# A Studio is another machine, so its kernels must not see the test run, Airflow or another Studio.
_DROPPED_PREFIXES = ("AIRFLOW", "AWS_ENDPOINT_URL", "JPY_", "JUPYTER", "PYTEST_", "SMSTUDIO_", "_AIRFLOW")
_DROPPED = ("IPYTHONDIR", "PYTHONWARNINGS", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONUNBUFFERED", "FORCE_COLOR")


class ServerStartError(RuntimeError):
    """The Jupyter server has ended, or did not answer in time."""


@dataclass(frozen=True)
class Layout:
    """The folders in which a local Studio keeps its files.

    :param root: the private folder, removed at the end.
    :param home: the Studio home: the server's root and the kernels' home directory.
    :param remove: the folder to remove if this process ends without cleaning up; None: no folder.
    """

    root: Path
    home: Path
    remove: Path | None = None

    def make(self) -> None:
        """Create the folders."""
        for name in ("config", "data", "runtime", "ipython", "xdg"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)

    def connection_file(self, kernel_id: str) -> Path:
        """Return the connection file with which a kernel's process is started."""
        return self.root / "runtime" / f"kernel-{kernel_id}.json"

    def environment(self, app_type: str, python: ServerPython, setup: Setup) -> dict[str, str]:
        """Return the environment of the server and its kernels, without the variables of Airflow and of tests."""
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_DROPPED_PREFIXES) and name not in _DROPPED
        }
        cache = env.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        env.update(
            # As in Studio, the kernels' home directory is the Studio home. The cache folder does not change,
            # because matplotlib needs many seconds to build its cache.
            HOME=str(self.home),
            XDG_CACHE_HOME=cache,
            XDG_CONFIG_HOME=str(self.root / "xdg"),
            JUPYTER_CONFIG_DIR=str(self.root / "config"),
            JUPYTER_DATA_DIR=str(self.root / "data"),
            JUPYTER_RUNTIME_DIR=str(self.root / "runtime"),
            IPYTHONDIR=str(self.root / "ipython"),
            # A server extension calls npm, which would create a folder in the home.
            npm_config_cache=str(self.root / "npm"),
            # SageMaker's extensions would create /var/log/studio.
            SAGEMAKER_LOG_FILE=str(self.root / "studio-logs" / "log"),
            SAGEMAKER_APP_TYPE_LOWERCASE=app_type.lower(),
            **setup.environment,
        )
        return python.environment(env)


def free_port() -> int:
    """Return a port of the loopback interface that no other process gets for the next minute.

    This function opens a connection to the port, and closes it on the port's side first. The port then stays in
    TIME_WAIT: the system does not choose it for a process that requests any free port. A server that requests this
    port can still have it.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    return port


class JupyterProcess:
    """One server process with its kernels.

    :param python: the interpreter for the server and its kernels.
    :param setup: the settings of its kind of space.
    :param config: text to add to the server's configuration file.
    :param args: arguments to add to the command line.
    """

    def __init__(
        self,
        layout: Layout,
        app_type: str,
        base: str,
        python: ServerPython,
        setup: Setup,
        config: str = "",
        args: Sequence[str] = (),
    ) -> None:
        self.base = base
        self.port = free_port()
        self.log_path = layout.root / "server.log"
        self._layout = layout
        self._app_type = app_type
        self._python = python
        self._setup = setup
        self._config = config
        self._args = list(args)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's own URL with its base path. It needs no login."""
        return f"http://127.0.0.1:{self.port}{self.base}"

    def _argv(self) -> list[str]:
        argv = [
            *(self._python.command, "-m", "jupyterlab"),
            *("--ip", "127.0.0.1", "--port", str(self.port), "--ServerApp.port_retries=0", "--no-browser"),
            *(f"--ServerApp.base_url={self.base}", "--ServerApp.token=", "--ServerApp.allow_origin=*"),
            # On SageMaker this is the default, because of its "--ip 0.0.0.0".
            "--ServerApp.allow_remote_access=True",
            f"--ServerApp.root_dir={self._layout.home}",
        ]
        if os.geteuid() == 0:
            argv.append("--allow-root")
        return [*argv, *self._setup.args, *self._args]

    def _write_config(self) -> None:
        setup, root = self._setup, self._layout.root
        text = _CONFIG + _KERNEL_PORTS
        if os.environ.get(FORK_KERNELS_VARIABLE) and sys.platform == "linux" and not self._python.foreign:
            text += _FORK_KERNELS
        if setup.extensions:
            text += f"c.ServerApp.jpserver_extensions = {setup.extensions!r}\n"
        if setup.shared_store:
            text += _SHARED_STORE.format(path=str(root / "ystore.db"))
        (root / "config" / "jupyter_server_config.py").write_text(text + self._config)
        if setup.lab_extensions:
            page = {"disabledExtensions": {name: not on for name, on in setup.lab_extensions.items()}}
            (root / "config" / "labconfig").mkdir(exist_ok=True)
            (root / "config" / "labconfig" / "page_config.json").write_text(json.dumps(page))

    async def start(self) -> None:
        """Start the process and wait until it answers. Try another port if another process has taken this one.

        :raises ServerStartError: if it does not start; the message contains the end of its log.
        """
        self._write_config()
        for _ in range(_PORTS_TRIED - 1):
            before = self.log_path.stat().st_size if self.log_path.exists() else 0
            try:
                return await self._start_once()
            except ServerStartError:
                told = self.log_path.read_bytes()[before:].decode(errors="replace")
                if f"The port {self.port} is already in use" not in told:
                    raise
                await self.kill()
                self.port = free_port()
        return await self._start_once()

    async def _start_once(self) -> None:
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
                env=self._layout.environment(self._app_type, self._python, self._setup),
                # Ctrl-C in a terminal must reach this process only, which then ends the server.
                start_new_session=True,
            )
        patience = FOREIGN_START_TIMEOUT if self._python.foreign else START_TIMEOUT
        deadline = time.monotonic() + patience
        while not await self._answers():
            if self._process.poll() is not None:
                raise ServerStartError(f"the Jupyter server ended with {self._process.returncode}: {self._tail()}")
            if time.monotonic() > deadline:
                raise ServerStartError(f"the Jupyter server did not answer in {patience:g} s: {self._tail()}")
            await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            # Another process on this port may never answer.
            asked = fetch(self.port, "GET", f"{self.base}/api/status")
            status, _ = await asyncio.wait_for(asked, _ANSWER_TIMEOUT)
        except (OSError, HttpError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return False
        return status == 200

    def _tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-800:].strip()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        while self._process is not None and self._process.poll() is None:
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop the server like the end of a container: SIGTERM, and after a while SIGKILL to all that is left."""
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
        # This polls, because thread pools are already closed when it runs at the interpreter's exit.
        while process.poll() is None:
            await asyncio.sleep(0.01)
        with contextlib.suppress(OSError):
            process.stdin.close()
