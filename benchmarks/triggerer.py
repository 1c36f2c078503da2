"""How many notebook runs one process with one event loop watches over. See README.md in this folder.

``python benchmarks/triggerer.py [--runs N ...] [--plain] [--tls] [--no-shrink] [--profile cpu|memory]``

For each number of runs a fake Studio is started, the runs are begun and handed over as workers do, and then a
fresh process, the triggerer, continues all of them by the trigger itself. Another one opens as many websockets
and nothing else: what a run costs beyond its bare socket is the difference. Afterwards each line that a cell
printed must stand in its run's executed notebook, once. It exits with 1 if a run was lost or failed, or a cell ran
twice.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import io
import json
import logging
import math
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

FAKE = Path(__file__).with_name("fake_studio.py")
DUMMY = {"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake", "AWS_EC2_METADATA_DISABLED": "true"}
UNWANTED = ("BUNDLE", "AWS_PROFILE", "AIRFLOW__", "AIRFLOW_CONN_")
Found = dict[str, Any]
STUDIO: Found = {
    "domain_id": "d-fake",
    "user_profile_name": "fake",
    "space_name": "fake",
    "app_type": "JupyterLab",
}
HOOK = {**STUDIO, "aws_conn_id": None, "region_name": "us-east-1", "studio_conn_id": None, "botocore_config": None}


def stats_of(control: str) -> Found:
    with urllib.request.urlopen(f"{control}/stats", timeout=60) as answer:
        found: Found = json.load(answer)
        return found


def raise_limit() -> None:
    """Allow as many open files as the machine does: a websocket is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# --- The triggerer, a process of its own


class Lags:
    """How late a task wakes that wants to each 10 ms: so long others have had the event loop."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.opened: int | None = None
        """How many there were when all websockets were open."""

    async def probe(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            self.all.append(time.perf_counter() - began - 0.01)

    def spread(self, start: int = 0) -> dict[str, float]:
        ordered = sorted(self.all[start:]) or [0.0]
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return {name: round(ordered[int(share * (len(ordered) - 1))] * 1000, 1) for name, share in shares.items()}


class Triggerer:
    """Continues the runs of one Studio, or only holds their websockets, and measures itself.

    :param options: the script's.
    :param told: what the parent process has prepared.
    """

    def __init__(self, options: argparse.Namespace, told: Found) -> None:
        self._options, self._told = options, told
        self._control: str = told["fake"]["control"]
        self._process = psutil.Process()
        self._lags = Lags()
        self._began = self._cpu = self._loop_cpu = 0.0
        self._before = 0
        self._found: Found = {"sockets": 0, "rss_kib": 0.0, "opened_after": None}
        self._over = threading.Event()
        self._profile = cProfile.Profile()

    def _start(self) -> None:
        """Take down what there is before the runs: imports and what all of them share are not theirs."""
        gc.collect()
        self._before = self._process.memory_info().rss
        if self._options.profile == "memory":
            tracemalloc.start()
        elif self._options.profile == "cpu":
            self._profile.enable()
        self._cpu, self._loop_cpu, self._began = time.process_time(), time.thread_time(), time.perf_counter()

    def _look(self, wanted: int) -> None:
        """Take down the memory when all websockets are open, or while most of them are."""
        while not self._over.wait(0.5):
            now = stats_of(self._control)["sockets_open"]
            if now <= self._found["sockets"]:
                continue
            used = (self._process.memory_info().rss - self._before) / 1024
            self._found |= {"sockets": now, "rss_kib": used}
            if now >= wanted:
                self._found["opened_after"] = time.perf_counter() - self._began
                self._lags.opened = len(self._lags.all)
                if tracemalloc.is_tracing():
                    _show_memory(tracemalloc.take_snapshot(), wanted)
                    tracemalloc.stop()
                return

    async def go_on(self) -> Found:
        """See all runs to their ends."""
        from airflow_provider_smstudio.studio.jupyter import async_websocket
        from airflow_provider_smstudio.studio.runs import shared_resources
        from airflow_provider_smstudio.triggers import notebook

        notebook.EARLIEST_EVENT = 0
        trigger_class = notebook.SageMakerStudioNotebookTrigger
        trigger_class.log = _nowhere()  # type: ignore[assignment, method-assign]  # patched
        if self._options.no_shrink:
            async_websocket._shrink = lambda ws: None
        hook = {**HOOK, "verify": self._told["fake"]["ca"]}
        runs: list[Found] = json.loads(Path(self._told["handovers"]).read_text())
        first = trigger_class(studio=hook, handover=runs[0])
        key = json.dumps(hook, sort_keys=True, default=str)
        async with (
            shared_resources.SharedResources.use() as shared,
            shared.studio(key, first._make_studio) as studio,
        ):
            await studio.call(studio.studio.session.renew)
            await self._warm_up(shared.sockets, studio.studio, studio.call)
            del runs, first
            self._start()
            looking = asyncio.create_task(asyncio.to_thread(self._look, self._told["n"]))
            probing = asyncio.create_task(self._lags.probe())
            runs = json.loads(Path(self._told["handovers"]).read_text())
            triggers = [trigger_class(studio=dict(hook), handover=run, log_output=False) for run in runs]
            del runs
            ends = await asyncio.gather(*map(self._one, triggers))
            self._take_down(ends)
            probing.cancel()
            self._profile.disable()
            if self._options.profile == "cpu":
                _show_cpu(self._profile)
            self._over.set()
            await looking
        return self._found

    async def _warm_up(self, sockets: Any, studio: Any, call: Callable[..., Awaitable[Any]]) -> None:
        """Have everything made that is made once: threads, their connections, certificates, a client."""
        from airflow_provider_smstudio.studio.jupyter.websocket import channel_path

        await asyncio.gather(*(call(studio.server.kernelspecs) for _ in range(50)))
        websocket = await sockets.open(studio.session, channel_path(self._told["spare"], uuid.uuid4().hex), 60)
        await websocket.close()

    @staticmethod
    async def _one(trigger: Any) -> str:
        try:
            async for event in trigger.run():
                payload = event.payload
                if payload["status"] != "success":
                    return f"{payload['status']}: {payload['error']}"
                missing = payload["result"]["incomplete_cells"]
                return f"cells without all of their output: {missing}" if missing else "success"
        except Exception as error:  # it ends this run only
            return f"raised {error!r}"
        return "no event"

    def _take_down(self, ends: list[str]) -> None:
        lags = self._lags
        self._found |= {
            "wall": time.perf_counter() - self._began,
            "cpu": time.process_time() - self._cpu,
            "loop_cpu": time.thread_time() - self._loop_cpu,
            "ends": dict(Counter(ends).most_common(5)),
            "success": ends.count("success"),
            "lag_ms": lags.spread(),
            "lag_open_ms": lags.spread(lags.opened) if lags.opened is not None else None,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    async def only_open(self) -> Found:
        """Open the websockets and do nothing with them."""
        from airflow_provider_smstudio.studio.jupyter import async_websocket
        from airflow_provider_smstudio.studio.jupyter import websocket as channel

        if self._options.no_shrink:
            async_websocket._shrink = lambda ws: None
        studio = make_studio(self._told["fake"])
        await asyncio.to_thread(studio.session.renew)
        sockets, handshakes = async_websocket.Sockets(), asyncio.Semaphore(32)
        await self._warm_up(sockets, studio, asyncio.to_thread)
        self._start()

        async def opened(kernel: str) -> Any:
            async with handshakes:
                return await sockets.open(studio.session, channel.channel_path(kernel, uuid.uuid4().hex), 60)

        looking = asyncio.create_task(asyncio.to_thread(self._look, self._told["n"]))
        websockets = await asyncio.gather(*map(opened, self._told["kernels"]))
        await asyncio.wait([looking], timeout=60)
        self._over.set()
        del websockets
        await sockets.close()
        return self._found

    def play(self) -> Found:
        return asyncio.run(self.only_open() if "kernels" in self._told else self.go_on())


def _nowhere() -> logging.Logger:
    """Return a logger whose lines are put together and go nowhere; all other loggers shall warn only."""
    logging.basicConfig(level=logging.WARNING, force=True)  # Airflow has set up its own
    logger = logging.Logger("triggers", logging.INFO)
    logger.addHandler(logging.FileHandler(os.devnull))
    return logger


def _show_cpu(profile: cProfile.Profile) -> None:
    text = io.StringIO()
    found = pstats.Stats(profile, stream=text).strip_dirs()
    found.sort_stats("tottime").print_stats(40).sort_stats("cumulative").print_stats(80)
    print(text.getvalue(), file=sys.stderr)


def _show_memory(snapshot: tracemalloc.Snapshot, runs: int) -> None:
    found = snapshot.filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)]).statistics("lineno")
    lines = [f"{sum(item.size for item in found) / 1024 / runs:8.2f} KiB a run in all"]
    for item in found[:25]:
        place = "/".join(Path(item.traceback[0].filename).parts[-3:])
        lines.append(
            f"{item.size / 1024 / runs:8.2f} KiB {item.count / runs:6.1f} blocks a run  "
            f"{place}:{item.traceback[0].lineno}"
        )
    print("\n".join(lines), file=sys.stderr)


# --- What starts and judges it


def make_studio(fake: Found) -> Any:
    import boto3

    from airflow_provider_smstudio.studio import Studio

    client = boto3.client(
        "sagemaker",
        endpoint_url=fake["control"],
        region_name="us-east-1",
        aws_access_key_id="fake",
        aws_secret_access_key="fake",
    )
    return Studio(client, **STUDIO, verify=fake["ca"] or True)


@contextmanager
def fake_studio(options: argparse.Namespace, n: int, *, tls: bool) -> Iterator[Found]:
    """Run a fake Studio in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"notebooks": n, "cells": options.cells, "cell-seconds": options.cell_seconds}
        command = [sys.executable, str(FAKE), "--output-kib", str(options.output_kib)]
        command += [word for name, value in asked.items() for word in (f"--{name}", str(value))]
        command += ["--tls-dir", folder] if tls else []
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.communicate()


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, without what would lead a client elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not any(word in name for word in UNWANTED)}
    return {**kept, **DUMMY, **more}


def triggerer(options: argparse.Namespace, told: Found) -> Found:
    """Have a fresh process do it."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "told.json").write_text(json.dumps(told))
        command = [sys.executable, __file__, "--child", str(Path(home) / "told.json")]
        command += ["--no-shrink"] if options.no_shrink else []
        command += ["--profile", options.profile] if options.profile and "handovers" in told else []
        own = environment(AIRFLOW_HOME=home, AWS_ENDPOINT_URL_SAGEMAKER=told["fake"]["control"])
        done = subprocess.run(command, env=own, stdout=subprocess.PIPE, check=True, timeout=options.limit)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(options: argparse.Namespace, number: int) -> str:
    """Return what the fake's cell of this number prints."""
    printed = [f"cell {number} line {line}\n" for line in range(1, math.ceil(options.cell_seconds) + 1)]
    return "".join(printed) + ("x" * 63 + "\n") * (16 * options.output_kib)


def measure(options: argparse.Namespace, n: int, *, tls: bool) -> tuple[Found, list[str]]:
    """Measure one number of runs; return what was found, and what went wrong."""
    from airflow_provider_smstudio.studio import RunSpec
    from airflow_provider_smstudio.studio.runs.runner import NotebookRunner

    def begin(number: int) -> Found:
        name = f"run-{number}"
        spec = RunSpec(f"{name}.ipynb", run_key=name, run_name=name)
        found: Found = NotebookRunner(studio.server, spec).run_or_hand_over(0).as_dict()
        return found

    def is_whole(run: Found) -> bool:
        cells = studio.server.read_notebook(run["spec"]["output_path"]).cells
        texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
        return texts == [lines_of(options, number) for number in range(1, options.cells + 1)]

    def session(number: int) -> str:
        path = f"bare-{number}.ipynb"
        return str(studio.server.start_session({"name": "python3"}, path, path, timeout=60)["kernel"]["id"])

    def have_triggerer(fake: Found, **more: Any) -> Found:
        spare = session(-1)
        try:
            return triggerer(options, {"fake": fake, "n": n, "spare": spare, **more})
        finally:
            studio.server.delete_kernel(spare)

    with ThreadPoolExecutor(16) as pool:
        with fake_studio(options, n, tls=tls) as fake:
            studio = make_studio(fake)
            bare = have_triggerer(fake, kernels=list(pool.map(session, range(n))))
        with fake_studio(options, n, tls=tls) as fake, tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            studio = make_studio(fake)
            runs = list(pool.map(begin, range(n)))
            json.dump(runs, file)
            file.flush()
            found = have_triggerer(fake, handovers=file.name)
            found["fake"] = fake_stats = stats_of(fake["control"])
            found["lost"] = n - sum(pool.map(is_whole, runs))
    found["bare_kib"] = bare["rss_kib"] / max(bare["sockets"], 1)
    wrong = [f"{count} runs ended so: {end}" for end, count in found["ends"].items() if end != "success"]
    checks = {
        "runs did not succeed": n - found["success"],
        "executed notebooks are not whole": found["lost"],
        "cells ran too often or not at all": fake_stats["cells_run"] - n * options.cells,
        "cells ran twice": fake_stats["cells_run_twice"],
        "sessions were left": fake_stats["sessions_open"],
    }
    return found, wrong + [f"{number} {what}" for what, number in checks.items() if number]


def row(options: argparse.Namespace, n: int, found: Found, *, tls: bool) -> dict[str, Any]:
    """Return a measure as a row of the table, by its columns' titles."""
    fake, lag, after, late = found["fake"], found["lag_ms"], found["opened_after"], found["lag_open_ms"]
    each = found["rss_kib"] / max(found["sockets"], 1)
    turnaround = fake["turnaround_ms"]
    return {
        "runs": n,
        "TLS": ("yes, buffers as they are" if options.no_shrink else "yes") if tls else "no",
        "lost or failed": max(n - found["success"], found["lost"]),
        "cells twice": fake["cells_run_twice"],
        "sockets at once": found["sockets"],
        "KiB a run": f"{each:.0f}",
        "KiB a bare socket": f"{found['bare_kib']:.0f}",
        "**beyond it**": f"**{each - found['bare_kib']:.0f}**",
        "peak RSS, MiB": f"{found['peak_rss_mib']:.0f}",
        "lag p50 / p99 / max, ms": f"{lag['p50']:g} / **{lag['p99']:g}** / {lag['max']:g}",
        "p99 once all are open": f"{late['p99']:g}" if late else "-",
        "CPU s (loop's)": f"{found['cpu']:.1f} ({found['loop_cpu']:.1f})",
        "CPU ms a cell": f"{found['cpu'] * 1000 / (n * options.cells):.1f}",
        "wall s (all open after)": f"{found['wall']:.0f} ({'never' if after is None else f'{after:.0f}'})",
        "logins": fake["logins"],
        "saves": fake["saves"],
        "heartbeats": fake["heartbeats"],
        "turnaround p50 / p99, ms": f"{turnaround['p50']:.1f} / {turnaround['p99']:.0f}",
        "fake's own lag p99, ms": f"{fake['own_lag_ms']['p99']:.1f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 500, 1000, 2000], help="how many at once")
    parser.add_argument("--tls", action="store_true", help="only with TLS (default: with and without)")
    parser.add_argument("--plain", action="store_true", help="only without TLS")
    parser.add_argument("--cells", type=int, default=3, help="cells of each notebook (default: 3)")
    parser.add_argument("--cell-seconds", type=float, default=10.0, help="how long each takes (default: 10)")
    parser.add_argument("--output-kib", type=int, default=0, help="KiB that each cell prints at its end")
    parser.add_argument("--no-shrink", action="store_true", help="leave asyncio's buffers for TLS as they are")
    parser.add_argument("--profile", choices=("cpu", "memory"), help="show what costs most; falsifies the rest")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one measure (default: 1800)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_limit()
    if options.child:
        print(json.dumps(Triggerer(options, json.loads(options.child.read_text())).play()))
        return 0
    for name in set(os.environ) - set(environment()):
        del os.environ[name]  # the runs are begun in this process
    kinds = [tls for tls, wanted in ((False, options.plain), (True, options.tls)) if wanted] or [False, True]
    problems, header = [], True
    for n in options.runs:
        for tls in kinds:
            found, wrong = measure(options, n, tls=tls)
            cells = row(options, n, found, tls=tls)
            if header:
                print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
                header = False
            print(f"| {' | '.join(map(str, cells.values()))} |", flush=True)
            problems += [f"{n} runs, {'TLS' if tls else 'plain'}: {line}" for line in wrong]
    for line in problems:
        print(line, flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
