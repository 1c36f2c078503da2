"""A real Airflow in a home of its own: its components as processes, the same on Airflow 2.11 and 3."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.request import urlopen

import psutil

from tests.helpers.databases import Database, Postgres, SQLite

T = TypeVar("T")
Stack = TypeVar("Stack", bound="AirflowStack")

AIRFLOW_2 = version("apache-airflow").startswith("2.")
# A worker sends a heartbeat each second, and counts as lost after this many without one. Fewer would make a
# busy machine's slow answers look like lost workers.
HEARTBEAT_TIMEOUT = 6
START_TIMEOUT = 120.0
# Airflow waits for running tasks when it is asked to end; nobody here does.
END_TIMEOUT = 5.0
POLL = 0.1


@dataclass(frozen=True)
class TaskInstance:
    """One row of Airflow's table of task instances."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    pid: int | None


class AirflowStack:
    """Scheduler, and on Airflow 3 API server and DAG processor, with a new database.

    Everything ends with the ``with`` block: each process that has this home in its environment.

    The executor is the LocalExecutor; on Airflow 2 with SQLite the SequentialExecutor, the only one that it allows
    there: one task runs at a time, and the scheduler waits for it.

    :param folder: where the Airflow home, ``airflow``, is made; it keeps the logs.
    :param dags: the folder of the DAGs.
    :param environment: variables for all processes, so also for the tasks.
    :param triggerer: start a triggerer as well.
    :param database: ``sqlite`` or ``postgres``.
    :param heartbeat_timeout: after how many seconds without a heartbeat a running task counts as lost.
    """

    def __init__(
        self,
        folder: Path,
        dags: Path,
        environment: Mapping[str, str],
        *,
        triggerer: bool = False,
        database: str = "sqlite",
        heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
    ) -> None:
        self.home = folder / "airflow"
        self.database: Database = Postgres(_free_port()) if database == "postgres" else SQLite(self.home)
        self._open = ExitStack()
        self._api_url = ""
        self._components = ["scheduler", *(["triggerer"] if triggerer else [])]
        if not AIRFLOW_2:
            self._api_url = f"http://127.0.0.1:{_free_port()}"
            self._components += ["api-server", "dag-processor"]
        self._environment = {
            **_plain_environment(self.home, self.database.url, dags),
            **(_settings_of_2(self.database) if AIRFLOW_2 else _settings_of_3(self._api_url)),
            **_heartbeats(heartbeat_timeout),
            **self._settings(),
            **environment,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # ---- what another executor has otherwise -------------------------------------------------------------

    def _settings(self) -> dict[str, str]:
        """Return variables that replace this class's own."""
        return {}

    def _services(self) -> list[AbstractContextManager[object]]:
        """Return the servers that have to run before Airflow starts, and until it has ended."""
        return [self.database]

    def _command(self, name: str) -> list[str]:
        """Return the arguments of ``airflow`` that start a component."""
        # Their log servers have fixed ports, and the logs are read from the files.
        return [name, *(["--skip-serve-logs"] if name in ("scheduler", "triggerer") else [])]

    # ---- start and end -----------------------------------------------------------------------------------

    def __enter__(self: Stack) -> Stack:
        self.home.mkdir(parents=True)
        with ExitStack() as stack:
            for service in self._services():
                stack.enter_context(service)
            self.cli("db", "migrate")
            self.database.prepare()
            stack.callback(self._end)
            for name in self._components:
                self.start(name)
            self.until(self._is_up, START_TIMEOUT, "Airflow to be up")
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def start(self, name: str) -> None:
        """Start a component."""
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *self._command(name)],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        wanted = {"SchedulerJob", "TriggererJob"} if "triggerer" in self._components else {"SchedulerJob"}
        running = {str(row[0]) for row in self.query("SELECT job_type FROM job WHERE state = 'running'")}
        return wanted <= running and (not self._api_url or _answers(f"{self._api_url}/execution/health"))

    def _end(self) -> None:
        for process in self._processes.values():
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            deadline = time.monotonic() + END_TIMEOUT
            for process in self._processes.values():
                process.wait(max(0.0, deadline - time.monotonic()))
        deadline = time.monotonic() + START_TIMEOUT
        # One that is just being forked is found in the next round.
        while left := self.pids():
            for pid in left:
                _kill(pid)
            for process in self._processes.values():
                process.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of {self.home} cannot be ended: {left}")
            time.sleep(POLL)
        for process in self._processes.values():
            process.wait()

    def pids(self) -> list[int]:
        """Return all living processes with this Airflow home in their environment."""
        found = []
        for process in psutil.process_iter():
            # Other people's processes cannot be read; those that wait to be reaped have no environment.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("AIRFLOW_HOME") == str(self.home):
                    found.append(process.pid)
        return found

    # ---- waiting -----------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """Wait until a condition is true and return it.

        :raises TimeoutError: when it does not become true in time; with the ends of Airflow's logs.
        :raises RuntimeError: at once when a component of Airflow ends meanwhile.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended:
                raise RuntimeError(f"{', '.join(ended)} ended while waiting for {what}\n{self.logs()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{timeout} s were not enough for {what}\n{self.logs()}")
            time.sleep(POLL)
        return value

    def wait_for(self, dag_id: str, run_id: str, states: Collection[str], timeout: float) -> str:
        """Wait until a DAG run is in one of these states and return the state."""

        def state() -> str:
            rows = self.query("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
            found = str(rows[0][0]) if rows else ""
            return found if found in states else ""

        return self.until(state, timeout, f"{dag_id} {run_id} to be {' or '.join(states)}")

    def logs(self, lines: int = 20) -> str:
        """Return the last lines of each component and of each try of a task."""
        paths = [*sorted(self.home.glob("*.log")), *sorted((self.home / "logs").rglob("attempt=*.log"))]
        parts = []
        for path in paths:
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(
                "\n".join([f"---- {path.relative_to(self.home)}", *(_plain_line(line)[:500] for line in tail)])
            )
        return "\n".join(parts)

    # ---- runs --------------------------------------------------------------------------------------------

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None) -> None:
        """Start a run of a DAG, once Airflow has read the DAG.

        :raises RuntimeError: when the DAG cannot be imported.
        """
        self.until_known(dag_id)
        self.cli("dags", "trigger", "--run-id", run_id, "--conf", json.dumps(conf or {}), dag_id)

    def until_known(self, dag_id: str) -> None:
        """Wait until Airflow has read a DAG.

        :raises RuntimeError: when it cannot be imported.
        """
        self.until(lambda: self._is_known(dag_id), START_TIMEOUT, f"the DAG {dag_id} to be read")

    def _is_known(self, dag_id: str) -> bool:
        errors = self.query("SELECT stacktrace FROM import_error")
        if errors:
            raise RuntimeError("\n".join(str(row[0]) for row in errors))
        # Airflow 2.11 writes a DAG's two rows one after the other.
        both = "SELECT 1 FROM serialized_dag JOIN dag ON dag.dag_id = serialized_dag.dag_id WHERE dag.dag_id = ?"
        return bool(self.query(both, dag_id))

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the run's task instances, as they are now."""
        rows = self.query(
            "SELECT task_id, map_index, state, try_number, pid FROM task_instance"
            " WHERE dag_id = ? AND run_id = ? ORDER BY task_id, map_index",
            dag_id,
            run_id,
        )
        return [TaskInstance(*row) for row in rows]

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        """Return what one try has logged so far; empty before its start."""
        path = self._log_folder(dag_id, run_id, task_id) / f"attempt={try_number}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(map(_plain_line, text.splitlines()))

    def task_logs(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return what all tries have logged so far, in workers and in the triggerer."""
        # The triggerer's part of a try is a file of its own: attempt=1.log.trigger.7.log
        paths = sorted(self._log_folder(dag_id, run_id, task_id).glob("attempt=*.log"))
        return "\n".join(
            "\n".join([f"---- {path.name}", *map(_plain_line, path.read_text(errors="replace").splitlines())])
            for path in paths
        )

    def _log_folder(self, dag_id: str, run_id: str, task_id: str) -> Path:
        return self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"

    # ---- the workers -------------------------------------------------------------------------------------

    def task_pids(self, dag_id: str, task_id: str) -> tuple[int, int]:
        """Return the processes that execute a running task: its supervisor and, below it, the task's own.

        On Airflow 2.11 the supervisor is ``airflow tasks run``, which Celery's worker starts as well; on
        Airflow 3 it is the LocalExecutor's worker process.

        :raises LookupError: when there is not exactly one such task, or its process is not there.
        """
        pids = [pid for *task, pid in self.running_tasks() if task == [dag_id, task_id]]
        if len(pids) != 1:
            raise LookupError(f"{task_id} of {dag_id} does not run, or more than once: {pids}")
        return self._supervisor_of(pids[0]), pids[0]

    def running_tasks(self) -> list[tuple[str, str, int]]:
        """Return DAG, task and process of all tasks that run."""
        rows = self.query(
            "SELECT dag_id, task_id, pid FROM task_instance WHERE state = 'running' ORDER BY dag_id, task_id, run_id"
        )
        return [(dag_id, task_id, pid) for dag_id, task_id, pid in rows if isinstance(pid, int)]

    def _supervisor_of(self, task: int) -> int:
        try:
            supervisor = psutil.Process(task).ppid()
        except psutil.Error as error:
            raise LookupError(f"process {task} has just ended") from error
        ours = set(self.pids()) - {process.pid for process in self._processes.values()}
        if not {supervisor, task} <= ours:
            raise LookupError(f"process {task} below {supervisor} is no task of this Airflow")
        return supervisor

    def kill_task(self, dag_id: str, task_id: str, *, supervisor: bool = True) -> None:
        """Kill a running task by SIGKILL, as a worker is lost: with nobody left who could tell of it.

        :param supervisor: kill the task's supervisor too. Without it the task alone is killed, as the kernel
            does for want of memory, and the supervisor reports that.
        """
        self.kill_process(self.task_pids(dag_id, task_id)[1], supervisor=supervisor)

    def kill_process(self, task: int, *, supervisor: bool = True) -> None:
        """Kill a running task by its process; see :meth:`kill_task`.

        :raises LookupError: when it has ended meanwhile.
        """
        above = self._supervisor_of(task)
        # The supervisor first: it would report the other's death.
        for pid in (above, task) if supervisor else (task,):
            _kill(pid)
        self.until(lambda: task not in self.pids(), 30, f"process {task} to be gone")

    def mark_failed(self, dag_id: str, run_id: str, task_id: str, state: str = "deferred") -> None:
        """Mark task instances in a state as failed, as a person does in the UI; here in the database."""
        self.database.execute(
            "UPDATE task_instance SET state = 'failed' WHERE dag_id = ? AND run_id = ? AND task_id = ?"
            " AND state = ?",
            (dag_id, run_id, task_id, state),
        )

    def kill(self, component: str, *, below: bool = True) -> list[int]:
        """Kill a component by SIGKILL; :meth:`start` starts it anew.

        :param below: with all processes below it. A scheduler's are the workers of the LocalExecutor.
        :return: those that live on. They hold the scheduler's connection to the database open, and with it, on
            Postgres, its locks; so they must end some time, for :meth:`kill_all`.
        """
        process = self._processes.pop(component)
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        self.kill_all([process.pid, *(children if below else [])])
        process.wait()
        return [] if below else children

    def kill_all(self, pids: Collection[int]) -> None:
        """Kill processes by SIGKILL, those that have not ended by themselves."""
        for pid in pids:
            _kill(pid)

    # ---- tools -------------------------------------------------------------------------------------------

    def cli(self, *arguments: str, check: bool = True) -> str:
        """Run a command of Airflow and return what it printed.

        :raises RuntimeError: when it fails, unless ``check`` is False.
        """
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self._environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3600,
        )
        if check and done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)}\n{done.stdout}")
        return done.stdout

    def cli_alone(self, *arguments: str) -> None:
        """Run a command of Airflow that writes, while all components that write by themselves stand still.

        With SQLite, ``backfill create`` may else find the database locked in its midst, and leave a part of a backfill
        that is in the way of every other one (apache/airflow#66726).
        """
        if self.database.parallel:
            self.cli(*arguments)
            return
        writers = [name for name in ("scheduler", "triggerer", "dag-processor") if name in self._processes]
        pids: list[int] = []

        def all_rest() -> bool:
            pids[:] = [self._processes[name].pid for name in writers]
            pids.extend([child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)])
            self._signal_all(pids, signal.SIGSTOP)
            if not self.database.is_locked():
                return True
            self._signal_all(pids, signal.SIGCONT)  # one stands still within a transaction
            return False

        try:
            self.until(all_rest, 60, "the database to be left alone")
            self.cli(*arguments)
        finally:
            self._signal_all(pids, signal.SIGCONT)

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run; the command itself says nothing when it finds no such DAG."""
        self.cli_alone("dags", "unpause", "-y", dag_id)
        (paused,) = self.query("SELECT is_paused FROM dag WHERE dag_id = ?", dag_id)[0]
        if paused:
            raise RuntimeError(f"{dag_id} is still paused")

    @staticmethod
    def _signal_all(pids: Collection[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self.database.query(sql, values)


def _plain_environment(home: Path, database_url: str, dags: Path) -> dict[str, str]:
    """Return an environment with nothing of the tester's own Airflow, AWS or Studio in it."""
    others = ("AIRFLOW_", "_AIRFLOW_", "AWS_", "SMSTUDIO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    # Without .pyc files each process of Airflow starts seconds later.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **environment,
        "PYTHONUNBUFFERED": "1",
        # Airflow 2.11 starts tasks by the name of the command.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        # Processes that give themselves a title would overwrite the environment by which they are found.
        "SPT_NOENV": "1",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _settings_of_2(database: Database) -> dict[str, str]:
    return {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor" if database.parallel else "SequentialExecutor",
        "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",  # it warns about the old unit
        "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
        # The scheduler sends no heartbeat while a task runs, and would take itself for another, lost one.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "3600",
    }


def _settings_of_3(api_url: str) -> dict[str, str]:
    return {
        "AIRFLOW__API__BASE_URL": api_url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": api_url.rpartition(":")[2],
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{api_url}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
    }


def _heartbeats(timeout: int) -> dict[str, str]:
    if AIRFLOW_2:
        return {
            "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": str(timeout),
            "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "1",
        }
    return {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(timeout),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    }


def _free_port() -> int:
    """Return a port that is free, below those that systems and the local Studio's kernels take by themselves.

    A server that is away for a while must find it free again.
    """
    while True:
        port = random.randrange(5_000, 10_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _plain_line(line: str) -> str:
    """Give a line of Airflow 3's log, which is JSON, the form of Airflow 2's."""
    try:
        record = json.loads(line)
        error = record.get("error_detail", "")
        return f"[{record['timestamp']}] {record['level'].upper()} - {record['event']} {error}".rstrip()
    except (ValueError, KeyError, TypeError):
        return line
