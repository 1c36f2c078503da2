"""How fast notebooks run, beside nbclient on the same kernels. See README.md in this folder.

``python benchmarks/cells.py [--repetitions N] [--workload NAME ...] [--json FILE]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import Studio

NO_LIMIT = "--ZMQChannelsWebsocketConnection.limit_rate=False"
MEGABYTE = 1_000_000
CORE = ("ours", "ours#2", "nbclient", "nbclient#2", "nbclient-own")
"""Run in every repetition; ``#2`` is the same client again, in another process: the A/A pair."""
OTHERS = ("ours-direct", "ours-livelog", "kernel-client", "papermill")
"""Run in the first few repetitions only."""


@dataclass(frozen=True)
class Workload:
    """A notebook of one kind.

    :ivar title: what its cells do.
    :ivar cells: their sources.
    :ivar expected: what each cell must show, in pieces: streams joined, each display for itself.
    :ivar limit: the highest median ratio to nbclient that the project allows itself, where it has one.
    """

    title: str
    cells: list[str]
    expected: list[list[str]]
    limit: float | None = None


def _display_cell(first: int, count: int) -> str:
    return (
        "from IPython.display import display\n"
        f"for i in range({first}, {first + count}):\n"
        f"    display({{'text/plain': f'{{i:08d}}' + 'x' * {MEGABYTE - 8}}}, raw=True)"
    )


def _piece(number: int) -> str:
    return f"{number:08d}" + "x" * (MEGABYTE - 8)


def _workloads() -> dict[str, Callable[[], Workload]]:
    lines = "".join(f"line {i} of some output\n" for i in range(20_000))
    return {
        "assign": lambda: Workload("200 cells `x = 1`", ["x = 1"] * 200, [[]] * 200, 1.5),
        "print": lambda: Workload(
            "200 cells that print a line",
            [f"print('cell {i}')" for i in range(200)],
            [[f"cell {i}\n"] for i in range(200)],
            1.5,
        ),
        "display": lambda: Workload(
            "200 displays of 1 MB in one cell", [_display_cell(0, 200)], [[_piece(i) for i in range(200)]], 2.0
        ),
        "display-spread": lambda: Workload(
            "20 cells with 10 displays of 1 MB",
            [_display_cell(10 * i, 10) for i in range(20)],
            [[_piece(10 * i + j) for j in range(10)] for i in range(20)],
            2.0,
        ),
        "lines": lambda: Workload(
            "20 cells that print 20,000 lines",
            ["for i in range(20_000): print(f'line {i} of some output')"] * 20,
            [[lines]] * 20,
        ),
        "assign-500": lambda: Workload("500 cells `x = 1`", ["x = 1"] * 500, [[]] * 500),
    }


WORKLOADS = _workloads()


class OutputLostError(Exception):
    """An executed notebook does not show what its cells printed."""


def shown(path: Path) -> list[list[str]]:
    """Return what an executed notebook shows: for each cell its pieces, consecutive streams joined."""
    cells = []
    for cell in json.loads(path.read_text())["cells"]:
        pieces: list[str] = []
        in_stream = False
        for output in cell["outputs"]:
            is_stream = output["output_type"] == "stream"
            value = output["text"] if is_stream else output["data"]["text/plain"]
            text = value if isinstance(value, str) else "".join(value)
            if is_stream and in_stream:
                pieces[-1] += text
            else:
                pieces.append(text)
            in_stream = is_stream
        cells.append(pieces)
    return cells


def fingerprint(cells: list[list[str]]) -> tuple[int, str]:
    """Return the number of characters and a hash of them and of how they are divided."""
    digest = hashlib.sha256()
    for pieces in cells:
        digest.update(f"cell {len(pieces)};".encode())
        for piece in pieces:
            digest.update(f"{len(piece)};".encode())
            digest.update(piece.encode())
    return sum(len(piece) for pieces in cells for piece in pieces), digest.hexdigest()


class Bench:
    """A local Studio in this process, which does nothing else while a client runs in its own.

    :param folder: for notebooks and logs.
    """

    def __init__(self, local: LocalStudio, folder: Path) -> None:
        self.local = local
        self.folder = folder
        self._studio = Studio(
            local.client(),
            domain_id=local.domain_id,
            user_profile_name=local.user_profile_name,
            space_name=local.space_name,
        )
        self._count = 0

    @contextmanager
    def client(self, name: str) -> Iterator[Callable[[Workload], dict[str, float]]]:
        """Start a client's process; give what measures one run in it."""
        kind = name.partition("#")[0]
        environment = {
            **os.environ,
            **self.local.environment,
            # nbclient's own kernels shall not meet the user's configuration, as those of the Studio do not.
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
        }
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("clients.py")), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                yield lambda workload: self._measure(process, kind, workload)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _measure(self, process: subprocess.Popen[str], kind: str, workload: Workload) -> dict[str, float]:
        self._count += 1
        notebook, output = (f"{what}-{self._count}.ipynb" for what in ("source", "executed"))
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        cells = [new_code_cell(source) for source in workload.cells]
        nbformat.write(new_notebook(cells=cells, metadata=metadata), self.local.home / notebook)
        job = {
            "home": str(self.local.home),
            "notebook": str(self.local.home / notebook),
            "output": str(self.local.home / output),
            "studio_notebook": notebook,
            "studio_output": output,
            "server_url": self.local.server_url,
        }
        with self._kernel(kind) as kernel:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({**job, **kernel}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{kind} ended with {process.wait()}")
        self._check(kind, workload, self.local.home / output)
        for name in (notebook, output):
            (self.local.home / name).unlink()
        measured: dict[str, float] = json.loads(answer)
        return measured

    @contextmanager
    def _kernel(self, kind: str) -> Iterator[dict[str, str]]:
        """Start a kernel on the server, as ours does for itself, for those that only attach to one."""
        if kind.startswith("ours") or kind == "nbclient-own":
            yield {}
            return
        server = self._studio.server
        session = server.start_session(
            {"name": "python3"}, f"kernel-{self._count}.ipynb", f"kernel {self._count}", timeout=60
        )
        kernel_id = session["kernel"]["id"]
        connection_file = self.local.home.parent / "runtime" / f"kernel-{kernel_id}.json"
        try:
            yield {
                "kernel_id": kernel_id,
                "connection_file": str(connection_file),
                "server_url": server.session.base_url,
                "cookie": server.session.websocket("")[1],
            }
        finally:
            server.delete_session(session["id"])

    @staticmethod
    def _check(kind: str, workload: Workload, path: Path) -> None:
        wanted, found = fingerprint(workload.expected), fingerprint(shown(path))
        if found != wanted:
            raise OutputLostError(f"{kind}, {workload.title}: {found[0]} characters shown, {wanted[0]} printed")


WARM_UP = Workload(
    "warm-up",
    ["x = 1", "print('a')", "from IPython.display import display\ndisplay({'text/plain': 'b'}, raw=True)"],
    [[], ["a\n"], ["b"]],
)


@dataclass
class Results:
    """The runs of one workload: for each client its measurements by repetition."""

    workload: str
    title: str
    cells: int
    limit: float | None
    runs: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)

    def values(self, client: str, what: str) -> dict[int, float]:
        """Return one measurement of a client by repetition."""
        return {number: run[what] for number, run in self.runs.get(client, {}).items()}

    def ratios(self, pairs: list[tuple[str, str]], what: str) -> list[list[float]]:
        """Return for each repetition the ratios of the pairs that ran in it."""
        found: dict[int, list[float]] = {}
        for one, other in pairs:
            ones, others = self.values(one, what), self.values(other, what)
            for number in ones.keys() & others.keys():
                found.setdefault(number, []).append(ones[number] / others[number])
        return [found[number] for number in sorted(found)]


@dataclass(frozen=True)
class Summary:
    """Median of ratios, its 95 % bootstrap interval over the repetitions if they are enough, and the extremes."""

    median: float
    interval: str
    least: float
    most: float

    @classmethod
    def of(cls, groups: list[list[float]]) -> Summary | None:
        """Summarise the ratios of each repetition; None when there are none."""
        values = [value for group in groups for value in group]
        if not values:
            return None
        interval = cls._interval(groups) if len(groups) >= 6 else "too few"
        return cls(statistics.median(values), interval, min(values), max(values))

    @staticmethod
    def _interval(groups: list[list[float]]) -> str:
        draw = random.Random(7)
        medians = sorted(
            statistics.median([value for group in draw.choices(groups, k=len(groups)) for value in group])
            for _ in range(2000)
        )
        return f"{medians[50]:.2f}-{medians[1949]:.2f}"


PAIRS = [("ours", "nbclient"), ("ours#2", "nbclient#2")]
NOISE = {"ours": [("ours", "ours#2")], "nbclient": [("nbclient", "nbclient#2")]}


def run_workload(bench: Bench, name: str, options: argparse.Namespace) -> Results:
    """Measure one workload with every client."""
    workload = WORKLOADS[name]()
    results = Results(name, workload.title, len(workload.cells), workload.limit)
    order = random.Random(f"{options.seed} {name}")
    others = [] if options.core_only else list(OTHERS)
    with ExitStack() as stack:
        clients = {client: stack.enter_context(bench.client(client)) for client in [*CORE, *others]}
        for measure in clients.values():
            measure(WARM_UP)
        for number in range(options.repetitions):
            turn = [*CORE, *(others if number < options.others else [])]
            order.shuffle(turn)
            for client in turn:
                try:
                    run = clients[client](workload)
                except OutputLostError as error:
                    results.losses.append(str(error))
                    print(f"OUTPUT LOST: {error}", file=sys.stderr)
                    continue
                results.runs.setdefault(client, {})[number] = run
                seconds = f"{run['run_wall']:7.2f} s wall {run['run_cpu']:7.2f} s CPU"
                print(f"{name:15} {number + 1:3} {client:14} {seconds}", file=sys.stderr)
    return results


def report(results: Results) -> str:
    """Return the results of a workload as Markdown."""
    lines = [f"### {results.workload}: {results.title}", ""]
    lines.append("| client | runs | wall s | wall + save s | CPU ms/cell | peak MB | peak MB with save |")
    lines.append("|---|---|---|---|---|---|---|")
    for client in [*CORE, *OTHERS]:
        runs = results.runs.get(client)
        if not runs:
            continue

        def median(what: str, client: str = client) -> float:
            return statistics.median(results.values(client, what).values())

        walls = results.values(client, "run_wall").values()
        lines.append(
            f"| {client} | {len(runs)} | {median('run_wall'):.2f} ({min(walls):.2f}-{max(walls):.2f}) "
            f"| {median('saved_wall'):.2f} | {1000 * median('run_cpu') / results.cells:.2f} "
            f"| {median('run_peak_mb'):.0f} | {median('saved_peak_mb'):.0f} |"
        )
    lines += ["", "| paired ratio | what | median | 95 % interval | least-most |", "|---|---|---|---|---|"]
    for title, pairs, what in _comparisons():
        summary = Summary.of(results.ratios(pairs, what))
        if summary is not None:
            lines.append(
                f"| {title} | {what.replace('_', ' ')} | **{summary.median:.2f}** "
                f"| {summary.interval} | {summary.least:.2f}-{summary.most:.2f} |"
            )
    lines += ["", *_verdicts(results), ""]
    return "\n".join(lines)


def _comparisons() -> Iterator[tuple[str, list[tuple[str, str]], str]]:
    for what in ("run_wall", "run_cpu", "saved_wall"):
        yield "ours / nbclient", PAIRS, what
        for client, pairs in NOISE.items():
            yield f"noise: {client} / {client} (A/A)", pairs, what
    own = [("ours", "nbclient-own"), ("ours#2", "nbclient-own")]
    yield "ours / nbclient-own", own, "run_wall"
    yield "ours / nbclient-own", own, "run_cpu"
    for client in ("ours-direct", "ours-livelog", "kernel-client", "papermill"):
        yield f"{client} / nbclient", [(client, "nbclient")], "run_wall"
    yield "ours-livelog / nbclient", [("ours-livelog", "nbclient")], "run_cpu"


def _verdicts(results: Results) -> Iterator[str]:
    wall, cpu = (Summary.of(results.ratios(PAIRS, what)) for what in ("run_wall", "run_cpu"))
    if wall is not None and results.limit is not None:
        holds = "holds" if wall.median <= results.limit else "DOES NOT HOLD"
        yield f"- Wall at most {results.limit:g} times nbclient's: {wall.median:.2f}, {holds}."
    if cpu is not None:
        yield f"- Client CPU below nbclient's: {cpu.median:.2f}, {'holds' if cpu.median < 1 else 'DOES NOT HOLD'}."
    yield f"- Output lost: {'; '.join(results.losses) or 'none, in any run of any client'}."


def machine() -> str:
    """Describe the machine and the versions."""
    packages = (
        "ipykernel jupyter-client jupyter-server jupyterlab jupyter-kernel-client nbclient nbformat papermill "
        "pyzmq tornado websocket-client"
    ).split()
    here = {found.name.replace("_", "-").lower(): found.version for found in distributions()}
    versions = ", ".join(f"{package} {here[package]}" for package in packages if package in here)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, "
        f"Python {platform.python_version()}, load {load}; {versions}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10, help="how often each pair runs (default: 10)")
    parser.add_argument("--others", type=int, default=3, help="in how many of them the other clients run, too")
    parser.add_argument("--core-only", action="store_true", help="leave the other clients out")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seed", type=int, default=1, help="for the order of the clients")
    parser.add_argument("--json", type=Path, help="where every single measurement goes")
    options = parser.parse_args()
    began = time.monotonic()
    everything = []
    print(machine(), "\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.workload:
            with LocalStudio(server_args=(NO_LIMIT,)) as local:
                results = run_workload(Bench(local, Path(folder)), name, options)
            everything.append(results)
            print(report(results), flush=True)
            if options.json:
                found = {"machine": machine(), "workloads": [asdict(results) for results in everything]}
                options.json.write_text(json.dumps(found, indent=1))
    print(f"{time.monotonic() - began:.0f} s in all; load at the end {os.getloadavg()[0]:.1f}.")
    return 1 if any(results.losses for results in everything) else 0


if __name__ == "__main__":
    sys.exit(main())
