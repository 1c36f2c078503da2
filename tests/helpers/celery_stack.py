"""An Airflow with the CeleryExecutor, as Amazon MWAA has it, and the ways in which its workers and servers are lost."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

from tests.helpers.airflow_stack import AIRFLOW_2, START_TIMEOUT, AirflowStack, _free_port, _kill
from tests.helpers.databases import Postgres

# Shorter than Airflow's 300 s, and long enough that a busy machine's slow answers do not look like lost workers.
HEARTBEAT_TIMEOUT = 15
# MWAA kills what is left of a worker by then.
TERM_TIMEOUT = 90.0
QUEUE = "default"


class Redis:
    """A Redis server without persistence, on a port of the loopback.

    :param folder: its working directory.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Redis:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "redis-server",
                    "--port",
                    str(self._port),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it, and with it all messages."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pids(self) -> list[int]:
        return [self._process.pid] if self._process is not None else []

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url)


class CeleryStack(AirflowStack):
    """Scheduler, triggerer and two Celery workers with Redis and Postgres, and on Airflow 3 the API server.

    Each worker is a session of its own, which stands for its container: all that it ever started is found by it.

    :param folder: where the Airflow home, ``airflow``, is made; it keeps the logs.
    :param dags: the folder of the DAGs.
    :param environment: variables for all processes, so also for the tasks.
    :param heartbeat_timeout: after how many seconds without a heartbeat a running task counts as lost.
    :param workers: how many workers, with two slots each.
    """

    def __init__(
        self,
        folder: Path,
        dags: Path,
        environment: Mapping[str, str],
        *,
        heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
        workers: int = 2,
    ) -> None:
        self.redis = Redis(folder / "redis", _free_port())
        self.heartbeat_timeout = heartbeat_timeout
        self._workers_made = 0
        self._lost: set[int] = set()  # the sessions of workers that are no more
        super().__init__(
            folder, dags, environment, triggerer=True, database="postgres", heartbeat_timeout=heartbeat_timeout
        )
        self._components += [self._new_worker() for _ in range(workers)]

    # ---- what is otherwise than with the LocalExecutor ---------------------------------------------------

    def _settings(self) -> dict[str, str]:
        return {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": self.redis.url,
            "AIRFLOW__CELERY__RESULT_BACKEND": "db+" + self.database.url,
            "AIRFLOW__CELERY__TASK_ACKS_LATE": "True",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            "AIRFLOW__CELERY__WORKER_ENABLE_REMOTE_CONTROL": "False",
            "AIRFLOW__CELERY__OPERATION_TIMEOUT": "10",  # this machine is slower than the one of 1 s
            "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "43200",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
            # A message that was lost with its worker or with Redis is sent again after this, not after ten minutes.
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
        }

    def _services(self) -> list[AbstractContextManager[object]]:
        return [*super()._services(), self.redis]

    def _command(self, name: str) -> list[str]:
        if not name.startswith("worker"):
            return super()._command(name)
        # Not by --celery-hostname: with it Airflow 3.2's provider asks Redis for others of that name, and the pool's
        # processes inherit that connection and hang. MWAA gives none either. What workers tell each other, by names
        # that are the same here, is left out instead.
        options = ["--skip-serve-logs", "--without-mingle", "--without-gossip"]
        return ["celery", "worker", *options, "--pid", str(self.home / f"{name}.pid")]

    def _is_up(self) -> bool:
        return super()._is_up() and all(map(self._is_ready, self.workers()))

    def _new_worker(self) -> str:
        # Not the name of one before: its pid file and its log are still there.
        self._workers_made += 1
        return f"worker-{self._workers_made}"

    def _is_ready(self, worker: str) -> bool:
        path = self.home / f"{worker}.log"
        return path.exists() and " ready." in path.read_text(errors="replace")

    # ---- workers -----------------------------------------------------------------------------------------

    def workers(self) -> list[str]:
        """Return the names of the workers that are there."""
        return [name for name in self._processes if name.startswith("worker")]

    def worker_of(self, task: int) -> str:
        """Return the worker that has started a task's process.

        :raises LookupError: when it is no living worker's.
        """
        with suppress(ProcessLookupError):
            session = os.getsid(task)
            for name in self.workers():
                if self._processes[name].pid == session:
                    return name
        raise LookupError(f"process {task} belongs to no worker")

    def pool_child_of(self, task: int) -> int:
        """Return the process of Celery's pool that supervises a task."""
        main = self._processes[self.worker_of(task)].pid
        with suppress(psutil.Error):
            for process in psutil.Process(task).parents():
                if process.ppid() == main:
                    return process.pid
        raise LookupError(f"process {task} has just ended")

    def pids_of(self, session: int) -> list[int]:
        """Return the living processes that a worker has started, also those that it has left behind."""
        found = []
        for pid in self.pids():
            with suppress(ProcessLookupError):
                if os.getsid(pid) == session:
                    found.append(pid)
        return found

    def end_worker(self, how: str, task: int) -> None:
        """Do one of :data:`ENDS` to the worker that runs a task, and start another one if it is lost by that.

        A container that is lost takes everything with it; here, what is left lives on until :meth:`end_orphans`, since
        nobody can say how long a container lives without its worker.

        :param task: the task's process.
        """
        ENDS[how](self, task)

    def _term_group(self, task: int) -> None:
        """MWAA: SIGTERM to all processes of the worker, SIGKILL to those left after 90 s."""
        with self._replaced(task) as main:
            os.killpg(main.pid, signal.SIGTERM)
            self._wait_or_kill(main)

    def _term_container(self, task: int) -> None:
        """The same, and the container ends with its worker."""
        self._term_group(task)
        self.end_orphans()

    def _quit(self, task: int) -> None:
        with self._replaced(task) as main:
            main.send_signal(signal.SIGQUIT)
            self._wait_or_kill(main)

    def _term_main(self, task: int) -> None:
        """A warm shutdown, which waits for the task."""
        with self._replaced(task) as main:
            main.terminate()
            self._wait_or_kill(main)

    def _kill_main(self, task: int) -> None:
        with self._replaced(task) as main:
            main.kill()
            main.wait()

    def _kill_group(self, task: int) -> None:
        with self._replaced(task) as main:
            os.killpg(main.pid, signal.SIGKILL)
            main.wait()

    def _kill_child(self, task: int) -> None:
        _kill(self.pool_child_of(task))  # Celery starts another one

    def _kill_task(self, task: int) -> None:
        _kill(task)

    def _freeze(self, task: int) -> None:
        """Let the whole worker stand still for longer than Airflow waits for a heartbeat."""
        session = self._processes[self.worker_of(task)].pid
        with frozen(lambda: self.pids_of(session)):
            time.sleep(2 * self.heartbeat_timeout)

    @contextmanager
    def _replaced(self, task: int) -> Iterator[subprocess.Popen[bytes]]:
        """Give the main process of a task's worker to somebody who ends it; then start another worker."""
        name = self.worker_of(task)
        main = self._processes.pop(name)
        self._lost.add(main.pid)
        yield main
        self.start(self._new_worker())

    def _wait_or_kill(self, main: subprocess.Popen[bytes]) -> None:
        try:
            main.wait(TERM_TIMEOUT)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(main.pid, signal.SIGKILL)
            main.wait()

    def end_orphans(self) -> None:
        """End what lost workers, and lost processes of their pools, have left behind, as containers do in the end."""
        for session in self._lost:
            self.kill_all(self.pids_of(session))
        self._lost.clear()
        ours = {os.getpid(), *self.pids()}
        for name in self.workers():
            for pid in self.pids_of(self._processes[name].pid):
                with suppress(psutil.Error):
                    if psutil.Process(pid).ppid() not in ours:
                        _kill(pid)

    def settle(self) -> None:
        """Have everything run again after a fault, whatever has become of it, and no task."""
        self.end_orphans()
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                del self._processes[name]
                self.start(self._new_worker() if name.startswith("worker") else name)
        for name in self._components:
            if not name.startswith("worker") and name not in self._processes:
                self.start(name)
        self.kill_all([pid for _, _, pid in self.running_tasks() if pid in self.pids()])
        for run in ("queued", "running"):
            self.database.execute("UPDATE dag_run SET state = 'failed' WHERE state = ?", (run,))
        over = "('success', 'failed', 'skipped', 'upstream_failed', 'removed')"
        self.database.execute(f"UPDATE task_instance SET state = 'failed' WHERE state NOT IN {over}")
        self.until(self._is_up, START_TIMEOUT, "Airflow to be up again")

    # ---- servers -----------------------------------------------------------------------------------------

    @contextmanager
    def without_redis(self, *, restarted: bool = False) -> Iterator[None]:
        """Let Redis stand still for a ``with`` block, or end it, with all messages, and start it afterwards."""
        if not restarted:
            with frozen(self.redis.pids):
                yield
            return
        self.redis.kill()
        try:
            yield
        finally:
            self.redis.start()

    def without_postgres(self) -> AbstractContextManager[None]:
        """Let Postgres stand still for a ``with`` block."""
        assert isinstance(self.database, Postgres)
        return frozen(self.database.pids)

    @contextmanager
    def without(self, component: str, *, kill: bool = True) -> Iterator[None]:
        """Kill a component, or ask it to end, and start it anew after the ``with`` block."""
        if kill:
            self.kill(component)
        else:
            process = self._processes.pop(component)
            process.terminate()
            process.wait(TERM_TIMEOUT)
        try:
            yield
        finally:
            self.start(component)

    def redeliver(self, run_id: str) -> None:
        """Have Redis deliver the message of a running task again, as after the visibility timeout.

        :raises LookupError: when there is none.
        """
        with self.redis.client() as client:
            for value in client.hvals("unacked"):
                message, _exchange, _routing_key = json.loads(value)
                if run_id in base64.b64decode(message["body"]).decode():
                    message["headers"]["redelivered"] = True
                    client.rpush(QUEUE, json.dumps(message))
                    return
        raise LookupError(f"no message of {run_id} waits for its end")

    # ---- what a person does ------------------------------------------------------------------------------

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None) -> None:
        """Start a run of a DAG; on Airflow 3 by the API, since the command takes seconds."""
        if AIRFLOW_2:
            super().trigger(dag_id, run_id, conf)
            return
        self.until_known(dag_id)
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        self._ask("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)

    def mark_failed_by_hand(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark a task as failed as the UI does; on Airflow 2.11 in the database."""
        if AIRFLOW_2:
            for state in ("running", "deferred"):
                self.mark_failed(dag_id, run_id, task_id, state)
            return
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self._ask("PATCH", path, {"new_state": "failed"})

    def clear_by_hand(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task as the UI does; on Airflow 2.11 in the database, as its ``clear_task_instances`` does."""
        if AIRFLOW_2:
            self.database.execute(
                "UPDATE task_instance SET state = CASE state WHEN 'running' THEN 'restarting' ELSE NULL END,"
                " max_tries = try_number + 2 WHERE dag_id = ? AND run_id = ? AND task_id = ?",
                (dag_id, run_id, task_id),
            )
            return
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task_id], "only_failed": False}
        self._ask("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def _ask(self, method: str, path: str, body: Mapping[str, object]) -> Any:
        with urlopen(f"{self._api_url}/auth/token", timeout=30) as answer:  # everybody is an admin
            token = json.load(answer)["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = Request(f"{self._api_url}{path}", json.dumps(body).encode(), headers, method=method)
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)


ENDS: dict[str, Callable[[CeleryStack, int], None]] = {
    "term-group": CeleryStack._term_group,
    "term-container": CeleryStack._term_container,
    "term-main": CeleryStack._term_main,
    "quit": CeleryStack._quit,
    "kill-main": CeleryStack._kill_main,
    "kill-group": CeleryStack._kill_group,
    "kill-child": CeleryStack._kill_child,
    "kill-task": CeleryStack._kill_task,
    "freeze": CeleryStack._freeze,
}


@contextmanager
def frozen(pids: Callable[[], Collection[int]]) -> Iterator[None]:
    """Let processes stand still for a ``with`` block."""
    found: set[int] = set()
    try:
        while new := set(pids()) - found:  # one may just be being started
            found |= new
            AirflowStack._signal_all(new, signal.SIGSTOP)
        yield
    finally:
        AirflowStack._signal_all(found, signal.SIGCONT)
