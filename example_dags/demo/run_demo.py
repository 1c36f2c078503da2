"""What ``make demo`` runs: the example DAG, through real Airflow, against a Studio on this machine.

It starts ``smstudio-local``, and under it itself once more; that second process runs Airflow. Everything is
kept in one folder (default ``.demo``), which each run empties first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parent
EXAMPLES = DEMO.parent
BIN = Path(sys.executable).parent
DAG_ID = "example_smstudio_notebook"
REPORT = "reports/executed/sales_report-North-2026-09.ipynb"
APP_START_SECONDS = 6
TIME_LIMIT = 600
# Classic has this kernel once for each image, so a name must tell the image.
CLASSIC_KERNEL = "python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0"
SPACE_IMAGE = "arn:aws:sagemaker:us-east-1:885854791233:image/sagemaker-distribution-cpu"


class DemoError(Exception):
    """The demo did not end as it should; the text says why."""


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)  # noqa: T201


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


# ---- the outer process: folder, local Studio, verdict ------------------------------------------------------


def outer(flavour: str, folder: Path) -> int:
    """Run the demo; return the exit code."""
    began = time.monotonic()
    say(f"This runs the DAG {DAG_ID} (sensor, then operator) with Airflow on a Studio that starts here.")
    home = prepare(folder)
    say(f"The Studio home is {shown(home)}; notebook and data are in its folder reports/.")
    # A Classic app starts with the login; a space's app is started by the inner process, as a user would.
    command = [str(BIN / "smstudio-local"), "run", "--flavour", flavour, "--home", str(home)]
    command += ["--app-status", "Missing", "--app-start-delay", str(APP_START_SECONDS), "--"]
    command += [sys.executable, str(Path(__file__).resolve()), "--inner", "--folder", str(folder)]
    say(f"Starting the local Studio: smstudio-local {shlex.join(map(shown, command[1:11]))} ...")
    code, errors = run_and_listen(command)
    if code:
        log = shown(folder / "airflow.log")
        raise DemoError(f"it ended with exit code {code}; all that Airflow printed is in {log}")
    if "reports 0 sessions and 0 kernels" not in errors:
        raise DemoError("the local Studio still has sessions or kernels")
    report = home / REPORT
    say(f"The executed notebook has {check(report)}.")
    show("")
    say(f"Done in {time.monotonic() - began:.0f} s. The executed notebook: {shown(report)}")
    root = ["--allow-root"] if os.geteuid() == 0 else []
    say(f"Open it with: {shlex.join([shown(BIN / 'jupyter'), 'lab', *root, shown(report)])}")
    return 0


def prepare(folder: Path) -> Path:
    """Empty the folder, and make it again with a Studio home that holds the notebook; return the home."""
    if folder.exists():
        if folder.is_symlink() or not (folder / ".smstudio-demo").exists():
            raise DemoError(f"{folder} exists and was not made by this demo; name another --folder")
        shutil.rmtree(folder)
    home = folder / "home"
    shutil.copytree(DEMO / "notebooks", home / "reports", ignore=shutil.ignore_patterns(".*"))
    (folder / ".smstudio-demo").touch()
    return home


def run_and_listen(command: list[str]) -> tuple[int, str]:
    """Run the local Studio; return its exit code and what it wrote to standard error, which is shown too.

    Ctrl-C, a termination and the time limit end it and everything under it before this process ends.
    """
    errors: list[str] = []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def listen() -> None:
        assert process.stderr is not None  # noqa: S101
        for line in process.stderr:
            errors.append(line)
            say(line.rstrip())

    reader = threading.Thread(target=listen)
    reader.start()
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait(TIME_LIMIT)
    except (KeyboardInterrupt, subprocess.TimeoutExpired) as reason:
        say(f"Ending what runs ({type(reason).__name__}) ...")
        code = end(process)
    finally:
        signal.signal(signal.SIGTERM, before)
    reader.join()
    return code, "".join(errors)


def end(process: subprocess.Popen[str]) -> int:
    """End a process that a Ctrl-C in the terminal has reached, too; return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.terminate()
    return process.wait() or 130


def check(report: Path) -> str:
    """See that the executed notebook is complete; tell what it has.

    :raises DemoError: saying what is missing.
    """
    notebook = json.loads(report.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    mimes = {mime for cell in cells for output in cell["outputs"] for mime in output.get("data", {})}
    run = notebook["metadata"].get("papermill") or {}
    wanted = {
        "a table": "text/html" in mimes,
        "a plot": "image/png" in mimes,
        "an execution count in every cell": all(cell["execution_count"] for cell in cells),
        "papermill metadata": bool(run.get("duration")) and run.get("exception") is False,
    }
    missing = [what for what, there in wanted.items() if not there]
    if missing:
        raise DemoError(f"the executed notebook {report} lacks {' and '.join(missing)}")
    return f"{len(cells)} executed cells, a table, a plot and papermill metadata ({run['duration']:.1f} s)"


def shown(path: Path | str) -> str:
    """Return a path as a user would type it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# ---- the inner process: Airflow, with the local Studio's variables -----------------------------------------


def inner(folder: Path) -> int:
    """Run the DAG and show its tasks' logs; return the exit code."""
    classic = "SMSTUDIO_SPACE_NAME" not in os.environ
    environment = airflow_environment(folder)
    if classic:
        environment["SMSTUDIO_KERNEL_NAME"] = CLASSIC_KERNEL
    airflow = str(BIN / "airflow")
    version = subprocess.run([airflow, "version"], env=environment, capture_output=True, text=True, check=True)
    say(f"Airflow {version.stdout.strip().splitlines()[-1]}: airflow db migrate")
    migrated = subprocess.run([airflow, "db", "migrate"], env=environment, capture_output=True, text=True)
    if migrated.returncode:
        show(migrated.stdout + migrated.stderr)
        return migrated.returncode
    say(f"airflow dags test {DAG_ID}; below are the logs of its tasks, as they are written")
    command = [airflow, "dags", "test", DAG_ID]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: end_airflow(process))
    start_app = None if classic else start_space_app
    for line in task_lines(process, folder / "airflow.log"):
        show(f"    {line}")
        if start_app and "Waiting" in line:
            say(f"The sensor waits. Starting the space's app now, which takes {APP_START_SECONDS} s ...")
            start_app()
            start_app = None
    code = process.wait()
    if code:
        return code if code > 0 else 128 - code
    left = kernel_apps() if classic else []
    if left:
        say(f"KernelGateway apps are left behind: {left}")
    return 1 if left else 0


def airflow_environment(folder: Path) -> dict[str, str]:
    """Return the variables of an Airflow that has nothing but its defaults and the example DAGs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # makes each start of Airflow seconds slower
    return {
        **environment,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # So that a program can pick the tasks' lines out of all others.
        "AIRFLOW__LOGGING__JSON_LOGS": "True",
        "PYTHONUNBUFFERED": "1",
    }


def end_airflow(process: subprocess.Popen[str]) -> None:
    """End a DAG run: the tasks are killed as Airflow kills them; what does not end by that is ended."""
    process.terminate()
    killer = threading.Timer(5, process.kill)
    killer.daemon = True
    killer.start()


def task_lines(process: subprocess.Popen[str], log: Path) -> Iterator[str]:
    """Write all that Airflow prints to a file, and yield what its tasks and this provider say."""
    assert process.stdout is not None  # noqa: S101
    with log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            try:
                record: dict[str, Any] = json.loads(line)
                logger, text = str(record.get("logger")), str(record["event"])
            except (ValueError, KeyError, TypeError):
                continue
            clock = str(record.get("timestamp", ""))[11:19]
            started = re.match(r"\[DAG TEST\] starting task_id=(\S+)", text)
            if started:
                yield ""
                yield f"{clock} ---- task {started[1]} ----"
            elif logger.startswith(("airflow.task", "airflow_provider_smstudio")) or record.get("level") in (
                "error",
                "critical",
            ):
                yield f"{clock} {text}"
                yield from (f"{clock} {error['exc_type']}: {error['exc_value']}" for error in errors(record))


def errors(record: dict[str, Any]) -> list[dict[str, Any]]:
    found = record.get("error_detail") or record.get("exception") or []
    return [e for e in found if isinstance(e, dict) and "exc_type" in e] if isinstance(found, list) else []


def start_space_app() -> None:
    """Start the space's JupyterLab app, as "Run space" in Studio does."""
    sagemaker().create_app(
        DomainId=os.environ["SMSTUDIO_DOMAIN_ID"],
        SpaceName=os.environ["SMSTUDIO_SPACE_NAME"],
        AppType="JupyterLab",
        AppName="default",
        ResourceSpec={"InstanceType": "ml.t3.medium", "SageMakerImageArn": SPACE_IMAGE},
    )


def kernel_apps() -> list[str]:
    """Return the KernelGateway apps (instances that cost money) that still are there."""
    apps = sagemaker().list_apps(DomainIdEquals=os.environ["SMSTUDIO_DOMAIN_ID"])["Apps"]
    return [a["AppName"] for a in apps if a["AppType"] == "KernelGateway" and a["Status"] != "Deleted"]


def sagemaker() -> Any:
    import boto3

    return boto3.client("sagemaker")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flavour", choices=["jupyterlab", "classic"], default="jupyterlab")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="emptied first; default: .demo")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.absolute()
    try:
        return inner(folder) if args.inner else outer(args.flavour, folder)
    except DemoError as error:
        say(f"FAILED: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
