"""Runs that must survive what happens to them: random notebooks, random faults, workers that are killed.

``python benchmarks/soak.py [--seconds N] [--seed N] [--flavour F] [--parallel N] [--only N]``

Each run belongs to a worker process of its own, as a task does. Random faults strike meanwhile, and a worker that
is killed gets a successor with the same run key. Afterwards each cell must have run once, each line must stand in
the executed notebook once, the run must have succeeded, and nothing may be left in Studio. See README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.local import LocalStudio

if TYPE_CHECKING:
    from benchmarks import soak_faults, soak_notebook
else:  # run as a script, whose folder is searched
    import soak_faults
    import soak_notebook

WORKER = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "worker_process.py"
FLAVOURS = ("jupyterlab", "classic")
QUICK = {
    "channel": {"PING_AFTER": 0.3, "SILENCE_LIMIT": 2.0, "DEAF_LIMIT": 4.0},
    "run_options": {
        "autosave_interval": 0.3,
        "check_interval": 1.5,
        "settle_time": 1.5,
        "unheard_limit": 1.5,
        "heartbeat_interval": 1.5,
    },
}
"""What lets a worker notice within seconds what it notices within minutes; half of the runs have it."""

_STRUCK_FOR = 60.0
_TRIES = 40
_DEFAULT_LIMIT = 300.0
_LATE_REQUESTS = 3.0
_BEGUN = ("event Reattached", "event CellStarted")
_KEPT = "the kernel is left running for the next try"


class Worker:
    """A process that runs the notebook, and what it said.

    :param command: what to start.
    :param environment: with this environment.
    :param write: told each line.
    """

    def __init__(self, command: list[str], environment: dict[str, str], write: Callable[[str], None]) -> None:
        self.begun = self.ended = self.kept = False
        self.last = ""
        self.result: dict[str, Any] | None = None
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._write = write
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in map(str.rstrip, lines):
                self.begun = self.begun or line in _BEGUN
                self.ended = self.ended or line == "event Finished"
                self.kept = self.kept or line == _KEPT
                if line.startswith("result "):
                    self.result = json.loads(line.removeprefix("result "))
                elif line.startswith("error ") or not self.last.startswith("error "):
                    self.last = line
                self._write(line[:300])

    def wait(self) -> int:
        """Wait until it is gone and all that it said was read; return its exit code."""
        code = self.process.wait()
        self._reader.join()
        return code

    def kill(self, *, traces: bool = False) -> None:
        """Kill it without a word, or, if it hangs, after it has shown where its threads are."""
        if traces:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
        self.process.kill()
        self.wait()


@dataclass
class Report:
    """What one run came to.

    :ivar wrong: what is wrong with it.
    :ivar repeats: how often a cell ran that had run already.
    :ivar losses: how many cells lack output, or are said to.
    :ivar hung: whether it was ended because it took too long.
    :ivar strikes: how often which fault struck.
    :ivar deaths: how many of its workers were killed.
    :ivar refusals: errors of workers that had not come as far as a cell, or that left the kernel for the next
        try; each is followed by another one.
    """

    wrong: list[str] = field(default_factory=list)
    repeats: int = 0
    losses: int = 0
    hung: bool = False
    strikes: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    about: str = ""


class Run:
    """One run of one notebook.

    :param local: the Studio.
    :param faults: its faults.
    :param name: names the run; all that is random about it follows from this.
    :param instance_type: what it runs on in Classic, so that runs beside each other share no app.
    :param options: the script's.
    :param folder: for its log.
    """

    def __init__(
        self,
        local: LocalStudio,
        faults: soak_faults.Faults,
        name: str,
        instance_type: str,
        options: argparse.Namespace,
        folder: Path,
    ) -> None:
        draw = random.Random(name)
        self.report = Report()
        self._local, self._faults, self._name, self._options = local, faults, name, options
        self._folder = name.replace("/", "-")
        self._quick = draw.random() < 0.5 or options.quick
        self._cells = soak_notebook.cells(draw)
        self._lives = [draw.uniform(0.5, 25) for _ in range(draw.choice([0, 0, 1, 1, 2, 3]))]
        self._strikes = soak_faults.plan(draw, min(_STRUCK_FOR, options.seconds))
        self._draw = draw
        self._undo: list[tuple[float, soak_faults.Undo]] = []
        self._began = time.monotonic()
        self.log_path = folder / f"{self._folder}.log"
        self._log = self.log_path.open("w")
        self._log_lock = threading.Lock()
        path = f"{self._folder}/work.ipynb"
        environment = local.environment
        self._asked = {
            "options": {
                "domain_id": environment["SMSTUDIO_DOMAIN_ID"],
                "user_profile_name": environment["SMSTUDIO_USER_PROFILE_NAME"],
                "space_name": environment.get("SMSTUDIO_SPACE_NAME"),
                "app_type": environment["SMSTUDIO_APP_TYPE"],
            },
            "spec": {
                "notebook_path": path,
                "run_key": name,
                "will_retry": True,
                "kernel_start_timeout": 120,
                "instance_type": instance_type if local.flavour == "classic" else None,
            },
            **(QUICK if self._quick else {}),
        }

    def play(self) -> None:
        """Run it to its end, whatever happens, and judge it."""
        self._write_notebook()
        self._began = time.monotonic()
        self._say(f"cells: {', '.join(cell.kind for cell in self._cells)}; quick: {self._quick}")
        try:
            result = self._live()
        finally:
            for _, undo in self._undo:
                undo()
        self.report.seconds = time.monotonic() - self._began
        if not self.report.hung:
            self._judge(result)
        for wrong in self.report.wrong:
            self._say(f"WRONG: {wrong}")
        size = sum(len(cell.shows) for cell in self._cells) / 1e6
        self.report.about = (
            f"{len(self._cells)} cells, {size:.1f} MB, {'quick' if self._quick else 'defaults'}, "
            f"{self.report.deaths} deaths, {self.report.refusals.total()} refused tries, "
            f"{self.report.strikes.total()} faults"
        )
        self._log.close()

    def _write_notebook(self) -> None:
        kernel = "python3"
        if self._local.flavour == "classic":
            kernel += "__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0"
        metadata = {"kernelspec": {"name": kernel, "display_name": "Python 3", "language": "python"}}
        notebook = new_notebook(cells=[new_code_cell(cell.source) for cell in self._cells], metadata=metadata)
        folder = self._local.home / self._folder
        folder.mkdir()
        nbformat.write(notebook, folder / "work.ipynb")

    # --- Its workers

    def _live(self) -> dict[str, Any] | None:
        """Have workers run it, one after the other, until one has told of its end."""
        for number in range(1, _TRIES + 1):
            self._say(f"worker {number} starts")
            command = [sys.executable, str(WORKER), json.dumps(self._asked)]
            worker = Worker(command, self._local.environment, lambda line, n=number: self._say(f"w{n} {line}"))  # type: ignore[misc]
            dies_at = time.monotonic() + self._lives[-1] if self._lives else None
            try:
                by_itself = self._watch(worker, dies_at)
            finally:
                worker.process.kill()  # harmless where it has ended
            if not by_itself:
                if self.report.hung:
                    return None
                if worker.result or (worker.ended and self._is_removed()):
                    return worker.result
            elif worker.result is not None:
                return worker.result
            elif worker.process.returncode or (worker.begun and not worker.kept):
                self.report.wrong.append(f"worker {number} ended: {worker.last[:500]}")
                return None
            else:
                error = worker.last.partition(":")[0].removeprefix("error ")
                self.report.refusals[f"{error} (kernel kept)" if worker.begun else error] += 1
            refused = self.report.refusals.total()
            self._pass(min(refused, 4) if refused else self._draw.choice([0.0, 0.3, 2.0]))
        self.report.wrong.append(f"{_TRIES} workers did not come to an end")
        return None

    def _watch(self, worker: Worker, dies_at: float | None) -> bool:
        """Let time pass until the worker has ended by itself; False when it was killed."""
        while worker.process.poll() is None:
            now = time.monotonic()
            if now >= self._began + self._options.limit:
                self.report.hung = True
                self.report.wrong.append(f"it hung: no end after {self._options.limit:g} s; {worker.last[:300]}")
                worker.kill(traces=True)
                return False
            if dies_at is not None and now >= dies_at:
                self._say("the worker is killed")
                self.report.deaths += 1
                self._lives.pop()
                worker.kill()
                return False
            self._pass(0.05)
        worker.wait()
        return True

    def _is_removed(self) -> bool:
        """Tell whether a worker that was killed at its very end had removed all before: then it needs no other.

        A request that it had made may still be under way.
        """
        until = time.monotonic() + _LATE_REQUESTS
        while self._sessions() and time.monotonic() < until:
            self._pass(0.1)
        return not self._sessions()

    def _pass(self, seconds: float) -> None:
        """Let time pass, and faults happen."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while self._strikes and now >= self._began + self._strikes[0].at:
                self._strike(self._strikes.pop(0))
            for over in [item for item in self._undo if now >= item[0]]:
                self._undo.remove(over)
                over[1]()
            if now >= until:
                return
            time.sleep(min(0.05, until - now))

    def _strike(self, strike: soak_faults.Strike) -> None:
        kernels = [item["kernel"]["id"] for item in self._sessions()]
        lasting = self._faults.strike(strike, kernels[0] if kernels else None)
        if lasting is not None:
            self.report.strikes[strike.name] += 1
            self._say(f"FAULT {strike.name} ({strike.size}) for {lasting[0]:.1f} s")
            self._undo.append((time.monotonic() + lasting[0], lasting[1]))

    # --- What came of it

    def _judge(self, result: dict[str, Any] | None) -> None:
        report, folder = self.report, self._local.home / self._folder
        report.repeats, wrong = soak_notebook.repeats(folder, len(self._cells))
        report.wrong += wrong
        if result is not None:
            if result["status"] != "success" or result["failed_cells"]:
                report.wrong.append(f"the result is {result}")
            marked = [f"cell {number} is marked as incomplete" for number in result["incomplete_cells"]]
        else:
            marked = []
        executed = list((folder / "work-runs").glob("*.ipynb"))
        lost = soak_notebook.losses(executed[0], self._cells) if executed else ["there is no executed notebook"]
        report.losses = len(lost) or len(marked)
        report.wrong += lost + marked
        if self._sessions():
            report.wrong.append(f"left in Studio: {self._sessions()}")

    def _sessions(self) -> list[dict[str, Any]]:
        return [item for item in self._local.sessions() if item["path"].startswith(f"{self._folder}/")]

    def _say(self, line: str) -> None:
        with self._log_lock:
            if not self._log.closed:
                self._log.write(f"{time.monotonic() - self._began:8.2f} {line}\n")
                self._log.flush()


class Soak:
    """All runs, on the Studios of all flavours.

    :param options: the script's.
    :param folder: for logs.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._deadline = time.monotonic() + options.seconds
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}

    def play(self) -> int:
        """Run until time is up; return the script's exit code."""
        began = time.monotonic()
        with ExitStack() as stack:
            threads = []
            left: list[str] = []
            for flavour in self._options.flavour or FLAVOURS:
                local = stack.enter_context(LocalStudio(flavour))
                stack.enter_context(self._looked_over(local, left))
                faults = soak_faults.Faults(local, storm=self._options.storm)
                numbers = iter([self._options.only]) if self._options.only else itertools.count(1)
                for slot in range(self._options.parallel):
                    of = (local, faults, numbers, f"ml.m5.{2 ** (slot + 1)}xlarge")
                    threads.append(threading.Thread(target=self._play_some, args=of, daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print(self._summary(time.monotonic() - began, left), flush=True)
        return 1 if left or any(report.wrong for report in self._reports.values()) else 0

    @contextmanager
    def _looked_over(self, local: LocalStudio, left: list[str]) -> Iterator[None]:
        """See at the end that nothing runs in a Studio any more."""
        yield
        left += [f"kernel {kernel['id']} of {local.flavour}" for kernel in local.kernels()]
        apps = [app for app in local.apps() if app["AppType"] == "KernelGateway"]
        left += [f"app {app['AppName']}" for app in apps if app["Status"] not in ("Deleted", "Deleting")]

    def _play_some(
        self, local: LocalStudio, faults: soak_faults.Faults, numbers: Iterator[int], instance_type: str
    ) -> None:
        while time.monotonic() < self._deadline:
            with self._lock:
                number = next(numbers, None)
            if number is None:
                return
            name = f"{self._options.seed}/{local.flavour}/{number}"
            run = Run(local, faults, name, instance_type, self._options, self._folder)
            try:
                run.play()
            except Exception as error:  # of this script: it ends one run only
                run.report.wrong.append(f"the soak itself failed: {error!r}")
            self._note(name, run.report, run.log_path)
            if self._options.parallel == 1:
                faults.end()

    def _note(self, name: str, report: Report, log: Path) -> None:
        with self._lock:
            self._reports[name] = report
            print(
                f"{'FAILED' if report.wrong else 'ok':6} {name} {report.seconds:5.1f} s: {report.about}",
                flush=True,
            )
            for wrong in report.wrong:
                print(f"       {wrong}", flush=True)
        if report.wrong and self._options.keep:
            self._options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, self._options.keep)
        log.unlink()

    def _summary(self, seconds: float, left: list[str]) -> str:
        reports = self._reports.values()
        strikes = sum((report.strikes for report in reports), Counter[str]())
        refusals = sum((report.refusals for report in reports), Counter[str]())
        lines = [
            f"{len(reports)} runs in {seconds:.0f} s, load {os.getloadavg()[0]:.1f}",
            f"worker deaths: {sum(report.deaths for report in reports)}",
            f"faults: {strikes.total()} ({', '.join(f'{n} {name}' for name, n in strikes.most_common())})",
            f"tries that gave up, and were followed by another: {refusals.total()} {dict(refusals) or ''}",
            f"losses: {sum(report.losses for report in reports)}",
            f"repeats: {sum(report.repeats for report in reports)}",
            f"hangs: {sum(report.hung for report in reports)}",
            f"left behind: {'; '.join(left) or 'nothing'}",
        ]
        failed = [name for name, report in self._reports.items() if report.wrong]
        lines.append(f"failures: {len(failed)}")
        for name in failed:
            seed, flavour, number = name.split("/")
            lines.append(f"    python benchmarks/soak.py --seed {seed} --flavour {flavour} --only {number}")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="begin runs for so long (default: 3600)")
    parser.add_argument("--seed", type=int, default=1, help="for notebooks, faults and deaths (default: 1)")
    parser.add_argument("--flavour", nargs="+", choices=FLAVOURS, help="default: both at once")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once on each Studio (default: 1)")
    parser.add_argument("--only", type=int, metavar="N", help="run number N alone")
    parser.add_argument("--limit", type=float, default=_DEFAULT_LIMIT, help="seconds after which a run hangs")
    parser.add_argument("--quick", action="store_true", help="let every run notice a broken connection soon")
    parser.add_argument("--storm", action="store_true", help="let faults of REST requests come together")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the logs of failed runs go")
    with tempfile.TemporaryDirectory() as folder:
        return Soak(parser.parse_args(), Path(folder)).play()


if __name__ == "__main__":
    sys.exit(main())
