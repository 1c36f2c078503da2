"""The databases that an Airflow of the tests may have: SQLite, and a Postgres server of its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psutil

Rows = list[tuple[Any, ...]]


class Database(Protocol):
    """What :class:`AirflowStack` needs of one; SQL is written with ``?``."""

    url: str
    parallel: bool

    def __enter__(self) -> Database: ...

    def __exit__(self, *_: object) -> None: ...

    def prepare(self) -> None:
        """Do what is left once Airflow has made its tables."""

    def is_locked(self) -> bool:
        """Tell whether whoever writes now has to wait for somebody else."""

    def query(self, sql: str, values: Sequence[object] = ()) -> Rows:
        """Read."""

    def execute(self, sql: str, values: Sequence[object] = ()) -> None:
        """Write."""


class SQLite:
    """A file below the Airflow home. Airflow 2 runs only one task at a time with it."""

    parallel = False

    def __init__(self, folder: Path) -> None:
        self._file = folder / "airflow.db"
        self.url = f"sqlite:///{self._file}?timeout=30"

    def __enter__(self) -> SQLite:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self) -> None:
        # Readers and the one writer no longer wait for each other; the file itself remembers this.
        self.query("PRAGMA journal_mode=WAL")

    def is_locked(self) -> bool:
        """Tell whether somebody is in the midst of writing."""
        with closing(sqlite3.connect(self._file, timeout=0)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    def query(self, sql: str, values: Sequence[object] = ()) -> Rows:
        with closing(sqlite3.connect(self._file, timeout=30)) as database:
            return database.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Sequence[object] = ()) -> None:
        with closing(sqlite3.connect(self._file, timeout=30)) as database, database:
            database.execute(sql, values)


class Postgres:
    """A Postgres server in a folder of its own, by the machine's ``initdb`` and ``pg_ctl``.

    It listens on a port of the loopback and asks for no password. Postgres refuses to run as root: then it runs as
    the user ``postgres``. Needs ``psycopg2`` and, for Airflow 3, ``asyncpg``.
    """

    parallel = True

    def __init__(self, port: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="smstudio-postgres-"))
        self._port = port
        self._as: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
            self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"

    def __enter__(self) -> Postgres:
        self._run("initdb", "-A", "trust", "-U", "airflow", "--no-sync")
        options = (
            f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
        )
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def prepare(self) -> None:
        pass

    def is_locked(self) -> bool:
        return False  # not as a whole

    def pids(self) -> list[int]:
        """Return the server's processes: its own first, then one for each connection and its helpers."""
        server = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))
        return [server.pid, *(child.pid for child in server.children(recursive=True))]

    def query(self, sql: str, values: Sequence[object] = ()) -> Rows:
        return self._call(sql, values, lambda cursor: list(cursor.fetchall()))

    def execute(self, sql: str, values: Sequence[object] = ()) -> None:
        self._call(sql, values, lambda cursor: [])

    def _call(self, sql: str, values: Sequence[object], take: Callable[[Any], Rows]) -> Rows:
        import psycopg2

        with closing(psycopg2.connect(self.url.replace("+psycopg2", ""))) as database, database:
            with database.cursor() as cursor:
                cursor.execute(sql.replace("?", "%s"), values)
                return take(cursor)

    def _run(self, command: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as, command, "-D", str(self._folder / "data"), *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            check=True,
            # Not a pipe: the server would keep it open.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )
