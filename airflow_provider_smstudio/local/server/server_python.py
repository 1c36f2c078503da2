"""The interpreter for the Jupyter server and its kernels."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_smstudio.local.server.space_settings import PACKAGES

IMAGE_FILE = "smstudio-image.txt"
"""A file in an environment's folder, with one line: the version of the SageMaker Distribution image it is like."""

_NEEDED = ("jupyterlab", "ipykernel")
_PROBE_TIMEOUT = 60.0
_PROBE = """\
import importlib.metadata, importlib.util, json, sys
names, needed = json.loads(sys.argv[1])
packages = {}
for name in names:
    try:
        packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
missing = [name for name in needed if importlib.util.find_spec(name) is None]
print(json.dumps({"prefix": sys.prefix, "executable": sys.executable, "packages": packages, "missing": missing}))
"""
# These lead an interpreter to the packages of another one. With the last one, each start compiles all modules
# again.
_MISLEADING = (
    *("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "PYTHONUSERBASE"),
    *("__PYVENV_LAUNCHER__", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONPLATLIBDIR", "PYTHONDONTWRITEBYTECODE"),
)


class JupyterMissingError(RuntimeError):
    """JupyterLab or ipykernel is not installed in the server's environment."""


@dataclass(frozen=True)
class ServerPython:
    """An interpreter with JupyterLab and ipykernel.

    :param command: the program that starts the server.
    :param bin: the folder of the environment's programs.
    :param foreign: whether it belongs to another environment than this process.
    :param packages: its packages of :data:`PACKAGES`, with their versions.
    :param image: the image's version, from :data:`IMAGE_FILE`; empty if there is none.
    """

    command: str
    bin: Path
    foreign: bool
    packages: Mapping[str, str]
    image: str

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the variables for a process of this interpreter: its own programs come first in ``PATH``.

        A foreign interpreter gets no programs and no Python settings of this process's environment.
        """
        path = env.get("PATH", os.defpath).split(os.pathsep)
        if not self.foreign:
            return {**env, "PATH": os.pathsep.join([str(self.bin), *path])}
        own = {Path(env["VIRTUAL_ENV"], "bin")} if env.get("VIRTUAL_ENV") else set()
        if sys.prefix != sys.base_prefix:
            # Only a virtual environment has a folder of its own: /usr/bin belongs to every environment.
            own.add(Path(sys.executable).parent)
        path = [folder for folder in path if Path(folder) not in own]
        kept = {name: value for name, value in env.items() if name not in _MISLEADING}
        return {**kept, "PATH": os.pathsep.join([str(self.bin), *path])}


def find_server_python(path: Path | str | None) -> ServerPython:
    """Check an interpreter and return what is known about it.

    :param path: its file, in a virtual environment the one in ``bin``; None: the interpreter of this process.
    :raises JupyterMissingError: if it lacks JupyterLab or ipykernel.
    :raises ValueError: if it is not a Python that can be started.
    """
    if path is None:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise JupyterMissingError(
                f"The local Studio needs {' and '.join(missing)}, not installed in {sys.prefix}: "
                "pip install 'airflow-provider-smstudio[local]'"
            )
        folder = Path(sys.executable).parent
        return ServerPython(sys.executable, folder, False, _own_packages(), _image(Path(sys.prefix)))
    # The path is not resolved: a virtual environment's interpreter is a link, and finds its environment by the
    # path of the link.
    file = Path(os.path.abspath(Path(path).expanduser()))
    told = _ask(file)
    if told["missing"]:
        raise JupyterMissingError(
            f"server_python {file} lacks {' and '.join(told['missing'])}: "
            f"{file} -m pip install {' '.join(told['missing'])}"
        )
    prefix = Path(told["prefix"])
    foreign = not _same(prefix, Path(sys.prefix))
    return ServerPython(
        str(file), Path(told["executable"]).parent, foreign, dict(told["packages"]), _image(prefix)
    )


def _own_packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _ask(file: Path) -> dict[str, Any]:
    wanted = f"name the file of a Python that has {' and '.join(_NEEDED)}, such as /opt/conda/bin/python"
    if not file.exists():
        raise ValueError(f"server_python: there is no file {file}; {wanted}")
    if not file.is_file():
        raise ValueError(f"server_python: {file} is not a file; {wanted}")
    if not os.access(file, os.X_OK):
        raise ValueError(f"server_python: {file} is not executable; {wanted}")
    env = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    question = json.dumps([PACKAGES, _NEEDED])
    try:
        done = subprocess.run(
            [str(file), "-I", "-c", _PROBE, question],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=_PROBE_TIMEOUT,
            check=True,
        )
        told = json.loads(done.stdout.strip().rpartition("\n")[2])
        if not isinstance(told, dict):
            raise ValueError(told)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        why = str(said).strip().rpartition("\n")[2][:200]
        raise ValueError(f"server_python: {file} is not a working Python ({why}); {wanted}") from error
    return told


def _image(prefix: Path) -> str:
    try:
        return (prefix / IMAGE_FILE).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
