"""One client of the benchmark, in a process of its own: runs a notebook for each line of JSON on its input.

``python benchmarks/clients.py CLIENT`` reads jobs from standard input and answers each with its measurements;
``cells.py`` starts it. Imports, logins, kernel starts and the opening of connections come before the timed
section, for every client. The timed section begins with the first request after the connection is ready
(``kernel_info`` where the client sends one) and ends when every output is in the notebook in memory; writing
the executed notebook is timed apart.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

Job = dict[str, Any]
"""``notebook``: the notebook on disk; ``output``: where the executed one goes; ``home`` and ``studio_*``: both
below the Studio home; ``connection_file``, ``kernel_id``, ``server_url``, ``cookie``: a running kernel."""

CLIENTS = ("ours", "ours-direct", "ours-livelog", "nbclient", "nbclient-own", "kernel-client", "papermill")


class Stopwatch:
    """Wall time, CPU time of this process (children excluded) and its highest memory, in sections."""

    def __init__(self) -> None:
        gc.collect()
        _reset_peak()
        self._start = (0.0, 0.0)
        self.result: dict[str, float] = {}

    def start(self) -> None:
        """Begin the first section."""
        self._start = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        """Note what has passed since the start, under this name."""
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        self.result |= {f"{name}_wall": wall, f"{name}_cpu": cpu, f"{name}_peak_mb": _peak_mb()}


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # else the peak is that of all jobs so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * (1024 if sys.platform == "darwin" else 1))


# --- Ours


def _ours(variant: str) -> Callable[[Job], dict[str, float]]:
    import boto3

    from airflow_provider_smstudio.studio import RunSpec, Studio
    from airflow_provider_smstudio.studio.execution import events as ev
    from airflow_provider_smstudio.studio.runs.log import RunLog

    studio = Studio(
        boto3.client("sagemaker"),
        domain_id=os.environ["SMSTUDIO_DOMAIN_ID"],
        user_profile_name=os.environ["SMSTUDIO_USER_PROFILE_NAME"],
        space_name=os.environ["SMSTUDIO_SPACE_NAME"],
        app_type=os.environ["SMSTUDIO_APP_TYPE"],
    )

    def run(job: Job) -> dict[str, float]:
        watch = Stopwatch()
        running = False
        live_log = RunLog(_file_log(job).log) if variant == "ours-livelog" else None

        def listener(event: ev.Event) -> None:
            nonlocal running
            if not running and isinstance(event, ev.Send):  # kernel_info_request, just sent
                running = True
                watch.start()
            elif isinstance(event, ev.CellFinished):
                watch.lap("run")  # every output is collected; the last cell's reading stays
            elif isinstance(event, ev.Finished):
                watch.lap("saved")
            if live_log is not None:
                live_log(event)

        if variant == "ours-direct":
            _connect_directly(studio.session, job["server_url"])
        spec = RunSpec(job["studio_notebook"], output_path=job["studio_output"])
        studio.runner(spec, listener=listener).run()
        return watch.result

    return run


def _connect_directly(session: Any, server_url: str) -> None:
    """Open websockets at the Jupyter server itself; REST still goes through the front door."""
    session.websocket = lambda path: (f"ws{server_url.removeprefix('http')}/{path}", "")


def _file_log(job: Job) -> logging.Logger:
    """Make a logger that writes like a task log: into a file, with time and level."""
    log = logging.getLogger("benchmark")
    log.propagate = False
    log.setLevel(logging.INFO)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(Path(job["output"]).with_suffix(".log"), mode="w")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s - %(message)s"))
    log.addHandler(handler)
    return log


# --- nbclient and papermill


class RunningKernel:
    """A kernel that the Jupyter server has started, as nbclient's kernel manager."""

    has_kernel = True
    ipykernel = True
    kernel_id = None

    def __init__(self, connection_file: str) -> None:
        self._connection_file = connection_file

    def client(self) -> Any:
        """Return a client of its five ZMQ channels."""
        from jupyter_client.asynchronous.client import AsyncKernelClient

        client = AsyncKernelClient()
        client.load_connection_file(self._connection_file)
        return client


def _nbclient(own_kernel: bool) -> Callable[[Job], dict[str, float]]:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    def run(job: Job) -> dict[str, float]:
        notebook = nbformat.read(job["notebook"], as_version=4)
        watch = Stopwatch()
        manager: Any = AsyncKernelManager(kernel_name="python3")
        if not own_kernel:
            manager = RunningKernel(job["connection_file"])
        client = NotebookClient(notebook, km=manager, timeout=None)
        if own_kernel:
            client.start_new_kernel(cwd=job["home"])
        connection = client.start_new_kernel_client()
        watch.start()
        client.execute()
        watch.lap("run")
        nbformat.write(notebook, job["output"])
        watch.lap("saved")
        if own_kernel:
            client._cleanup_kernel()
        else:
            connection.stop_channels()
        return watch.result

    return run


def _papermill() -> Callable[[Job], dict[str, float]]:
    import papermill

    def run(job: Job) -> dict[str, float]:
        watch = Stopwatch()
        kernel = RunningKernel(job["connection_file"])
        watch.start()  # it opens its connection inside, some 0.1 s, and saves at every cell
        papermill.execute_notebook(job["notebook"], job["output"], progress_bar=False, km=kernel)
        watch.lap("run")
        watch.lap("saved")
        return watch.result

    return run


# --- jupyter_kernel_client


def _kernel_client() -> Callable[[Job], dict[str, float]]:
    from jupyter_kernel_client import JupyterKernelClient
    from nbformat.v4 import output_from_msg

    def output_node(output: dict[str, Any]) -> nbformat.NotebookNode:
        message = {"header": {"msg_type": output["output_type"]}, "content": output}
        node: nbformat.NotebookNode = output_from_msg(message)
        return node

    def run(job: Job) -> dict[str, float]:
        notebook = nbformat.read(job["notebook"], as_version=4)
        watch = Stopwatch()
        kernel = JupyterKernelClient(
            server_url=job["server_url"],
            token="",
            kernel_id=job["kernel_id"],
            headers={"Cookie": job["cookie"]},
        )
        kernel.start()
        watch.start()
        for cell in notebook.cells:
            reply = kernel.execute(cell.source, timeout=600)
            cell["outputs"] = [output_node(output) for output in reply["outputs"]]
            cell["execution_count"] = reply["execution_count"]
        watch.lap("run")
        nbformat.write(notebook, job["output"])
        watch.lap("saved")
        kernel.stop(shutdown_kernel=False)
        return watch.result

    return run


def client_of(name: str) -> Callable[[Job], dict[str, float]]:
    """Return what runs a job with the named client; everything is imported then."""
    if name.startswith("ours"):
        return _ours(name)
    if name.startswith("nbclient"):
        return _nbclient(own_kernel=name == "nbclient-own")
    return {"papermill": _papermill, "kernel-client": _kernel_client}[name]()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    logging.basicConfig(level=logging.WARNING)
    run = client_of(sys.argv[1])
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
