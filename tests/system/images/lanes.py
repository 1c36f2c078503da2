"""Runs the tests beside this file on images, one after the other, and writes what passed into docs/images.md.

A lane is an image and a kind of space. Its result is a file in ``build/images``; while neither the code, the tests
nor the image's packages change, the lane is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LOCKS = HERE / "locks"
RESULTS = ROOT / "build" / "images"
PAGE = ROOT / "docs" / "images.md"
BEGIN, END = "<!-- written by make test-images: begin -->", "<!-- end -->"

SHARED_SINCE = (3, 9)
"""Older images' shared spaces are private ones with another name."""

HELPERS = (
    *("airflow_stack", "bench", "deferred", "faults", "image_bench", "killed_worker", "person"),
    *("worker_process", "workers"),
)
"""Files of other tests that the scenarios use."""

CI = (("4.3.2", "private"), ("4.4.0", "private"), ("4.4.1", "shared"), ("2.14.10", "private"))

PACKAGES = ("jupyterlab", "jupyter_server", "ipykernel", "jupyter_server_documents")

_TELL = f"""\
import importlib.metadata, json, sys
told = {{"python": ".".join(map(str, sys.version_info[:2]))}}
for name in {PACKAGES!r}:
    try:
        told[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        told[name] = ""
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Result:
    """What a lane has shown.

    :ivar digest: of all that it depends on.
    :ivar versions: of what is in the image's environment.
    :ivar scenarios: by the test class's name, and in it by the test's, whether it passed.
    """

    image: str
    kind: str
    digest: str
    date: str
    seconds: float
    versions: dict[str, str]
    scenarios: dict[str, dict[str, bool]]

    @property
    def passed(self) -> bool:
        return bool(self.scenarios) and all(all(tests.values()) for tests in self.scenarios.values())


def numbers(image: str) -> tuple[int, ...]:
    return tuple(map(int, image.split(".")))


def all_lanes() -> list[tuple[str, str]]:
    images = sorted((path.stem for path in LOCKS.glob("*.txt")), key=numbers)
    return [
        (image, kind)
        for image in images
        for kind in ("private", "shared")
        if kind == "private" or numbers(image) >= SHARED_SINCE
    ]


def digest_of(image: str) -> str:
    """Return a digest of the code, of the tests and of the image's packages."""
    files = [
        path
        for folder in ("airflow_provider_smstudio", "tests/system/images")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files += [ROOT / "tests" / "helpers" / f"{name}.py" for name in HELPERS]
    files.append(ROOT / "tests" / "system" / "dags" / "killed_worker.py")
    found = hashlib.sha256()
    for path in (*sorted(set(files) - {HERE / "lanes.py"}), LOCKS / f"{image}.txt"):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def result_file(image: str, kind: str) -> Path:
    return RESULTS / f"{image}-{kind}.json"


def saved_result(image: str, kind: str) -> Result | None:
    path = result_file(image, kind)
    return Result(**json.loads(path.read_text())) if path.exists() else None


def python_of(image: str) -> Path:
    """Build an image's environment, if that has not been done; return its Python."""
    subprocess.run([os.environ.get("MAKE", "make"), "--silent", "image", f"IMAGE={image}"], cwd=ROOT, check=True)
    return ROOT / ".venv-images" / image / "bin" / "python"


def run(image: str, kind: str, processes: int, arguments: list[str]) -> Result:
    """Run a lane and keep its result."""
    python, digest = python_of(image), digest_of(image)
    told = subprocess.run([python, "-I", "-c", _TELL], check=True, capture_output=True, text=True).stdout
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = RESULTS / f"{image}-{kind}.xml"
    report.unlink(missing_ok=True)
    began = time.monotonic()
    command = [
        *(sys.executable, "-m", "pytest", str(HERE), "--server-python", str(python), "--space-kind", kind),
        # A crash that nobody notices must not take five minutes.
        *("--timeout=120", "-o", "faulthandler_timeout=0"),
        *("-n", str(processes), "--dist", "worksteal", f"--junitxml={report}", *arguments),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False)
    scenarios = scenarios_of(report) if report.exists() else {}
    if done.returncode and all(all(tests.values()) for tests in scenarios.values()):
        scenarios.setdefault("TestLane", {})[f"pytest ended with {done.returncode}"] = False
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Result(image, kind, digest, date, round(time.monotonic() - began), json.loads(told), scenarios)


def scenarios_of(report: Path) -> dict[str, dict[str, bool]]:
    """Read pytest's report: a test has passed when nothing went wrong, neither before nor after it."""
    found: dict[str, dict[str, bool]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        group = str(case.get("classname")).rpartition(".")[2]
        tests = found.setdefault(group, {})
        name = str(case.get("name"))
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        tests[name] = tests.get(name, True) and not bad
    return found


def lane(image: str, kind: str, options: argparse.Namespace, arguments: list[str]) -> bool:
    """Run a lane unless its result is there; return whether all of it passed."""
    title = f"{image} {kind}"
    if options.resume and (known := saved_result(image, kind)) and known.digest == digest_of(image):
        say(f"{title}: {told(known)}, as it was; FORCE=1 runs it again")
        return known.passed
    say(f"{title}: begins")
    result = run(image, kind, options.processes, arguments)
    if not arguments:
        result_file(image, kind).write_text(json.dumps(asdict(result), indent=1))
    say(f"{title}: {told(result)} in {result.seconds:g} s")
    return result.passed


def told(result: Result) -> str:
    bad = [
        f"{group}::{name}"
        for group, tests in result.scenarios.items()
        for name, passed in tests.items()
        if not passed
    ]
    return f"FAILED: {', '.join(bad)}" if bad or not result.scenarios else "passed"


def say(line: str) -> None:
    sys.stdout.write(f"=== {line}\n")
    sys.stdout.flush()


# ---- the table -------------------------------------------------------------------------------------------


def write_table() -> None:
    """Put what the last run of each lane has shown into the page."""
    results = [result for where in all_lanes() if (result := saved_result(*where))]
    head, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the line {END if begin else BEGIN}")
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables(results)}\n\n{END}{tail}")


def tables(results: list[Result]) -> str:
    groups = sorted({group for result in results for group in result.scenarios})
    names = ["image", "space", "Python", "JupyterLab", "jupyter_server", "ipykernel", "jupyter_server_documents"]
    of_images = [names, ["---"] * len(names)]
    of_lanes = [["image", "space", *map(words, groups)], ["---"] * (2 + len(groups))]
    for result in results:
        where = [result.image, result.kind]
        versions = result.versions
        shown = [versions["python"], *(versions[name] or "-" for name in PACKAGES[:-1]), documents_of(result)]
        of_images.append([*where, *shown])
        of_lanes.append([*where, *(cell(result.scenarios.get(group, {})) for group in groups)])
    days = sorted({result.date for result in results})
    counts = {group: max(len(result.scenarios.get(group, {})) for result in results) for group in groups}
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    scenarios = ", ".join(f"{words(group)} ({counts[group]})" for group in groups)
    bad = [f"- {result.image} {result.kind}: {told(result)}" for result in results if not result.passed]
    parts = [
        f"Run on {span}: {len(results)} of {len(all_lanes())} combinations. Scenarios, with the number of tests of"
        f" each: {scenarios}.",
        rows(of_lanes),
        rows(of_images),
    ]
    return "\n\n".join([*parts, *(["\n".join(bad)] if bad else [])])


def documents_of(result: Result) -> str:
    from airflow_provider_smstudio.local.server.space_settings import setup_of

    version = result.versions["jupyter_server_documents"]
    extensions: dict[str, Any] = setup_of(
        result.kind, {"jupyter_server_documents": version} if version else {}, result.image
    ).extensions
    return "switched off" if extensions.get("jupyter_server_documents") is False else version or "-"


def words(group: str) -> str:
    return " ".join(re.findall("[A-Z][a-z]*", group.removeprefix("Test"))).lower()


def cell(tests: dict[str, bool]) -> str:
    if not tests:
        return "-"
    return "pass" if all(tests.values()) else f"**{sum(tests.values())} of {len(tests)}**"


def rows(table: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Other arguments are pytest's, and then no result is kept.")
    parser.add_argument("image", nargs="?", help="one image only, such as 4.3.2")
    parser.add_argument("--kind", default="private", help="its kind of space: private or shared")
    parser.add_argument("--ci", action="store_true", help="the images and scenarios of CI")
    parser.add_argument("--resume", action="store_true", help="leave out lanes whose result is there")
    parser.add_argument("--table", action="store_true", help="only write the table of the results that are there")
    parser.add_argument("--processes", type=int, default=3, help="how many tests run side by side")
    parser.add_argument("--beside", type=int, default=1, help="how many images are tested side by side")
    options, arguments = parser.parse_known_args()
    if options.table:
        write_table()
        return 0
    if options.ci:
        lanes, arguments = list(CI), [*arguments, "-m", "ci"]
    else:
        lanes = [(options.image, options.kind)] if options.image else all_lanes()
    with ThreadPoolExecutor(options.beside) as pool:
        passed = list(pool.map(lambda where: lane(where[0], where[1], options, arguments), lanes))
    if not arguments:
        write_table()
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
