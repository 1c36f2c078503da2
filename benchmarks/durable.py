"""What it costs that a run survives lost connections and lost workers. See README.md in this folder.

``python benchmarks/durable.py [--repetitions N] [--cells N] [--bytes]`` runs the same notebook with all of it (a
run key, the kernel's record, heartbeats, saves on the way) and with none of it, in one client process, and with
``--bytes`` counts what saves write for notebooks of several lengths.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec, Studio
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.autosave import Autosave
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.runs import spec
from airflow_provider_smstudio.studio.runs.worker_loop import WorkerLoop

if TYPE_CHECKING:
    from benchmarks.cells import NO_LIMIT, Summary, machine
else:  # run as a script, whose folder is searched
    from cells import NO_LIMIT, Summary, machine

LIMIT = 1.05
"""The highest median ratio of wall time and of client CPU that the project allows itself."""

VARIANTS = ("all", "none", "all#2", "none#2", "no record")
"""``all`` and ``none`` run twice in each repetition: the A/A pairs. ``no record``: as with other kernels."""

OPTIONS = {
    "all": RunOptions(),
    "none": RunOptions(record=False, autosave_interval=1e9, heartbeat_interval=1e9),
    "no record": RunOptions(record=False),
}
PAIRS = [("all", "none"), ("all#2", "none#2")]
NOISE = [("all", "all#2")], [("none", "none#2")]
LENGTHS = (50, 100, 200, 400)
OUTPUT = 2000

Job = dict[str, str]
Measured = dict[str, float]


class Client:
    """Runs jobs in this process, against the Studio that the environment names; all imports come before."""

    def __init__(self) -> None:
        self._studio = Studio(
            boto3.client("sagemaker"),
            domain_id=os.environ["SMSTUDIO_DOMAIN_ID"],
            user_profile_name=os.environ["SMSTUDIO_USER_PROFILE_NAME"],
            space_name=os.environ["SMSTUDIO_SPACE_NAME"],
        )
        self._written: list[int] = []
        write, written = JupyterServer.write_notebook, self._written

        def counted(server: JupyterServer, path: str, body: bytes, **arguments: Any) -> str | None:
            written.append(len(body))
            return write(server, path, body, **arguments)

        JupyterServer.write_notebook = counted  # type: ignore[assignment, method-assign]  # it counts, too

    def run(self, job: Job) -> Measured:
        """Run one job."""
        variant = job["variant"].partition("#")[0]
        options = OPTIONS[variant]
        spec.RunOptions = lambda **_: options  # type: ignore[attr-defined, assignment]  # the job sets nothing
        watch = Stopwatch()
        key = job["output"] if variant != "none" else None
        wanted = RunSpec(job["notebook"], output_path=job["output"], run_key=key)
        one = self._studio.runner(wanted, listener=watch)
        if variant == "none":
            _strip(one)
        self._written.clear()
        gc.collect()
        one.run()
        return {**watch.result, "saves": len(self._written), "bytes": sum(self._written)}


class Stopwatch:
    """Listens to a run; takes wall time and CPU time of this process from its first request on."""

    def __init__(self) -> None:
        self.result: Measured = {}
        self._start: tuple[float, float] | None = None

    def __call__(self, event: ev.Event) -> None:
        """Take an event."""
        if self._start is None and isinstance(event, ev.Send):  # kernel_info_request, just sent
            self._start = (time.perf_counter(), time.process_time())
        elif isinstance(event, ev.CellFinished):
            self._lap("run")  # the last cell's reading stays
        elif isinstance(event, ev.Finished):
            self._lap("saved")

    def _lap(self, name: str) -> None:
        assert self._start is not None
        self.result[f"{name}_wall"] = time.perf_counter() - self._start[0]
        self.result[f"{name}_cpu"] = time.process_time() - self._start[1]


def _strip(runner: Any) -> None:
    """Take out what a run without a record does instead: name each cell in the session, save as it begins."""
    save = WorkerLoop._save

    def only_last(loop: WorkerLoop, run: Any, *, last: bool) -> None:
        save(loop, run, last=True) if last else run.postpone_save(time.monotonic())

    runner._kernel.ownership.rename = lambda name: True
    WorkerLoop._save = only_last  # type: ignore[assignment, method-assign]  # patched


class Bench:
    """A client process beside a local Studio.

    :param local: the Studio.
    """

    def __init__(self, local: LocalStudio) -> None:
        self._local = local
        self._count = 0

    @contextmanager
    def client(self) -> Iterator[Callable[[list[str], str], Measured]]:
        """Start the process; give what measures one run in it: of these cells, in this variant."""
        with subprocess.Popen(
            [sys.executable, __file__, "--client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._local.environment},
        ) as process:
            try:
                yield lambda cells, variant: self._measure(process, cells, variant)
            finally:
                assert process.stdin is not None
                process.stdin.close()

    def _measure(self, process: subprocess.Popen[str], cells: list[str], variant: str) -> Measured:
        self._count += 1
        job = {
            "variant": variant,
            "notebook": f"source-{self._count}.ipynb",
            "output": f"executed-{self._count}.ipynb",
        }
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=metadata)
        nbformat.write(notebook, self._local.home / job["notebook"])
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the client ended with {process.wait()}")
        executed = nbformat.read(self._local.home / job["output"], as_version=4)
        assert all(cell.execution_count for cell in executed.cells)
        measured: Measured = json.loads(answer)
        return measured


def measure_time(bench: Bench, options: argparse.Namespace) -> list[dict[str, Measured]]:
    """Run every variant in each repetition, in an order that is drawn; return the measurements by repetition."""
    order, repetitions = random.Random(options.seed), []
    with bench.client() as measure:
        for variant in VARIANTS:
            measure(["x = 1", "print('a')"], variant)
        for number in range(options.repetitions):
            turn = list(VARIANTS)
            order.shuffle(turn)
            found = {variant: measure(["x = 1"] * options.cells, variant) for variant in turn}
            repetitions.append(found)
            said = ", ".join(
                f"{variant} {found[variant]['run_wall']:.2f}/{found[variant]['run_cpu']:.3f}"
                for variant in VARIANTS
            )
            print(f"{number + 1:3} wall/CPU s: {said}", file=sys.stderr)
    return repetitions


def report_time(repetitions: list[dict[str, Measured]], cells: int) -> str:
    """Return the comparison as Markdown."""
    lines = [f"### {cells} cells `x = 1`", ""]
    lines += ["| variant | wall s | wall + save s | CPU ms/cell | saves |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        runs = [found[variant] for found in repetitions]

        def median(what: str, runs: list[Measured] = runs) -> float:
            return statistics.median(run[what] for run in runs)

        walls = [run["run_wall"] for run in runs]
        lines.append(
            f"| {variant} | {median('run_wall'):.3f} ({min(walls):.3f}-{max(walls):.3f}) "
            f"| {median('saved_wall'):.3f} | {1000 * median('run_cpu') / cells:.3f} | {median('saves'):.0f} |"
        )
    lines += ["", "| paired ratio | what | median | 95 % interval | least-most |", "|---|---|---|---|---|"]
    compared = [
        ("all / none", PAIRS),
        ("noise: all / all", NOISE[0]),
        ("noise: none / none", NOISE[1]),
        ("no record / none", [("no record", "none"), ("no record", "none#2")]),
    ]
    verdicts = []
    for title, pairs in compared:
        for what in ("run_wall", "run_cpu", "saved_wall", "saved_cpu"):
            groups = [[found[one][what] / found[other][what] for one, other in pairs] for found in repetitions]
            summary = Summary.of(groups)
            assert summary is not None
            lines.append(
                f"| {title} | {what.replace('_', ' ')} | **{summary.median:.3f}** | {summary.interval} "
                f"| {summary.least:.2f}-{summary.most:.2f} |"
            )
            if pairs is PAIRS and what.startswith("run"):
                holds = "holds" if summary.median < LIMIT else "DOES NOT HOLD"
                verdicts.append(
                    f"- {what.replace('_', ' ')} at most {LIMIT:g} times: {summary.median:.3f}, {holds}."
                )
    return "\n".join([*lines, "", *verdicts, ""])


def report_bytes(bench: Bench) -> str:
    """Count what saves write for notebooks of several lengths, and for longer ones by the schedule alone."""
    cell = f"import time\ntime.sleep(0.1)\nprint('x' * {OUTPUT})"
    lines = [f"### Saves of notebooks whose cells take 0.1 s and print {OUTPUT} characters", ""]
    lines += ["| cells | seconds | saves | MB written | kB a cell | MB/s |", "|---|---|---|---|---|---|"]
    with bench.client() as measure:
        for count in LENGTHS:
            run = measure([cell] * count, "all")
            lines.append(_bytes_row(str(count), count, run["saved_wall"], run["saves"], run["bytes"]))
    for count in (*LENGTHS, 1000, 2000, 4000, 10_000, 20_000, 40_000, 100_000):
        lines.append(_bytes_row(f"{count} (schedule alone)", count, *_simulated(count)))
    return "\n".join([*lines, ""])


def _bytes_row(title: str, count: int, seconds: float, saves: float, written: float) -> str:
    return (
        f"| {title} | {seconds:.0f} | {saves:.0f} | {written / 1e6:.2f} | {written / count / 1e3:.1f} "
        f"| {written / seconds / 1e6:.2f} |"
    )


def _simulated(
    count: int, seconds_per_cell: float = 0.1, size_per_cell: int = OUTPUT + 900
) -> tuple[float, int, int]:
    """Ask the schedule alone: for how long it runs, how many saves it makes, how many bytes these write.

    A save takes 5 ms and 10 ms for each megabyte, as on the machine on which this was written.
    """
    schedule = Autosave(RunOptions().autosave_interval, 0.0)
    saves, written = 1, 900 * count  # the one before the first cell
    schedule.made(0.0, [])
    schedule.saved(0.0, 0.005, written)
    for number in range(1, count + 1):
        now = number * seconds_per_cell
        schedule.changed = True
        if schedule.due(now) or number == count:
            size = 900 * count + number * (size_per_cell - 900)
            saves, written = saves + 1, written + size
            schedule.made(now, [])
            seconds = 0.005 + size / 1e8
            schedule.saved(now + seconds, seconds, size)
    return count * seconds_per_cell, saves, written


def serve() -> None:
    """Be the client: run a job for each line of JSON on standard input, answer with its measurements."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    client = Client()
    for line in sys.stdin:
        answers.write(json.dumps(client.run(json.loads(line))) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=12, help="each has two pairs (default: 12)")
    parser.add_argument("--cells", type=int, default=200, help="how many cells the notebook has (default: 200)")
    parser.add_argument("--bytes", action="store_true", help="count what saves write, too: 2 minutes more")
    parser.add_argument("--seed", type=int, default=1, help="for the order of the variants")
    parser.add_argument("--json", type=Path, help="where every single measurement goes")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        serve()
        return 0
    print(machine(), "\n")
    with LocalStudio(server_args=(NO_LIMIT,)) as local:
        bench = Bench(local)
        if options.repetitions:
            repetitions = measure_time(bench, options)
            print(report_time(repetitions, options.cells), flush=True)
            if options.json:
                options.json.write_text(json.dumps({"machine": machine(), "repetitions": repetitions}, indent=1))
        if options.bytes:
            print(report_bytes(bench))
    return 0


if __name__ == "__main__":
    sys.exit(main())
