"""The life of a Studio app: records that stay visible, and the server that starts and stops with the app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.server.jupyter import JupyterProcess, ServerStartError

# Seen in responses from AWS after an app's server had ended unexpectedly.
_STOPPED_TEXT = "The {type} app {name} encountered a problem and was stopped."
ALIVE = ("Pending", "InService", "Deleting")


@dataclass
class AppRecord:
    """The data of an app in the control plane."""

    app_type: str
    app_name: str
    owner_key: str
    owner: str
    status: str
    created: float = field(default_factory=time.time)
    resource_spec: dict[str, Any] = field(default_factory=dict)
    recovery_mode: bool | None = None
    failure_reason: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the fields that both ListApps and DescribeApp show."""
        shown: dict[str, Any] = {
            self.owner_key: self.owner,
            "AppType": self.app_type,
            "AppName": self.app_name,
            "Status": self.status,
            "CreationTime": self.created,
        }
        if self.resource_spec:
            shown["ResourceSpec"] = self.resource_spec
        return shown


class AppLifecycle:
    """The one app named ``default`` of a space (JupyterLab) or of a user profile (Classic's JupyterServer).

    Only the event loop's thread uses it.

    :param new_server: creates the server process of the app, not yet started.
    """

    def __init__(
        self,
        app_type: str,
        owner_key: str,
        owner: str,
        base: str,
        switches: Switches,
        new_server: Callable[[], JupyterProcess],
        default_resource_spec: dict[str, Any],
    ) -> None:
        self.app_type = app_type
        self.app_name = "default"
        self.owner_key = owner_key
        self.owner = owner
        self.base = base
        self.switches = switches
        self.default_resource_spec = default_resource_spec
        self.record: AppRecord | None = None
        self.server: JupyterProcess | None = None
        self.server_log: Path | None = None
        self.starts = 0
        self._new_server = new_server
        self._job: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_classic(self) -> bool:
        """Whether this is the JupyterServer app of Studio Classic."""
        return self.app_type == "JupyterServer"

    @property
    def status(self) -> str:
        """The app's status; empty if it never existed."""
        return self.record.status if self.record else ""

    @property
    def port(self) -> int | None:
        """The server's port while the app is InService and its server is running; else None."""
        if self.status == "InService" and self.server is not None:
            return self.server.port
        return None

    def put_record(self, status: str, reason: str | None = None, spec: dict[str, Any] | None = None) -> AppRecord:
        """Create a new record with the given status, and return it."""
        self.record = AppRecord(
            self.app_type,
            self.app_name,
            self.owner_key,
            self.owner,
            status,
            resource_spec=dict(spec or self.default_resource_spec),
            failure_reason=reason,
        )
        return self.record

    def start_if_stopped(self) -> None:
        """Start the app if it is stopped, as a login to Studio Classic does."""
        if self.status not in ALIVE:
            self.create(None)

    def create(
        self, spec: dict[str, Any] | None, recovery_mode: bool | None = None, delay: float | None = None
    ) -> AppRecord:
        """Begin to start the app. It becomes InService or Failed by itself.

        :param delay: the shortest time that it stays Pending, in seconds; None: the value of ``app_start_delay``.
        """
        self.starts += 1
        record = self.put_record("Pending", spec=spec)
        record.recovery_mode = recovery_mode
        self._begin(self._start(record, self.switches.app_start_delay if delay is None else delay))
        return record

    def delete(self) -> None:
        """Begin to stop the app. It becomes Deleted by itself."""
        assert self.record is not None  # noqa: S101  # the caller has found it
        self.record.status = "Deleting"
        self._begin(self._stop(self.record))

    async def restart_server(self) -> None:
        """Kill the app's server and start a new one. The app stays InService during this time.

        :raises RuntimeError: if the app is not InService, or if the new server did not start.
        """
        record = self.record
        if record is None or record.status != "InService":
            raise RuntimeError(f"only an app that is InService has a server to restart; it is {self.status!r}")
        self._begin(self._restart(record))
        await self.settled()
        if record.status != "InService":
            raise RuntimeError(f"the app's server did not start again: {record.failure_reason}")

    async def fail(self, reason: str) -> None:
        """Kill the app's server and set the app to Failed, at once."""
        await self._cancel_job()
        await self._kill_server()
        if self.record is None:
            self.put_record("Failed")
        assert self.record is not None  # noqa: S101  # put_record() has set it
        self.record.status = "Failed"
        self.record.failure_reason = reason

    async def settled(self) -> None:
        """Wait until the app has left Pending or Deleting."""
        if self._job is not None:
            await asyncio.wait({self._job})

    async def shutdown(self) -> None:
        """Kill the server and cancel a start or stop, for the end of the local Studio."""
        await self._cancel_job()
        await self._kill_server()

    def _begin(self, job: Coroutine[Any, Any, None]) -> None:
        before, self._job = self._job, None
        if before is not None:
            before.cancel()
        self._job = asyncio.get_running_loop().create_task(job)

    async def _cancel_job(self) -> None:
        if self._job is not None:
            self._job.cancel()
            await asyncio.gather(self._job, return_exceptions=True)
            self._job = None

    async def _start(self, record: AppRecord, delay: float) -> None:
        due = time.monotonic() + delay
        failure = self.switches.app_start_failure or self._no_capacity(record)
        await self._kill_server()
        if failure is None:
            failure = await self._start_server()
        await asyncio.sleep(due - time.monotonic())
        await self._started(record, failure)

    def _no_capacity(self, record: AppRecord) -> str | None:
        """Return the FailureReason (as seen on AWS) if the instance type has no capacity; else None."""
        wanted = record.resource_spec.get("InstanceType", "")
        if wanted not in self.switches.no_capacity:
            return None
        return (
            f"EC2InsufficientCapacityError: Instance type '{wanted}' is temporarily unavailable in supported "
            "availability zones [use1-az1]. Try again in a few minutes, or try a different instance type."
        )

    async def _restart(self, record: AppRecord) -> None:
        await self._kill_server()
        await self._started(record, await self._start_server())

    async def _start_server(self) -> str | None:
        """Start a new server. Return the reason if it failed, else None."""
        self.server = self._new_server()
        self.server_log = self.server.log_path
        try:
            await self.server.start()
        except ServerStartError as error:
            return f"InternalFailure: {error}"
        return None

    async def _started(self, record: AppRecord, failure: str | None) -> None:
        if failure is not None:
            await self._kill_server()
            record.status, record.failure_reason = "Failed", failure[:1024]
            return
        record.status = "InService"
        self._watch = asyncio.get_running_loop().create_task(self._watch_server(record))

    async def _stop(self, record: AppRecord) -> None:
        due = time.monotonic() + self.switches.app_stop_delay
        server, self.server = self.server, None
        await self._end_watch()
        if server is not None:
            await server.stop()
        await asyncio.sleep(due - time.monotonic())
        record.status = "Deleted"

    async def _watch_server(self, record: AppRecord) -> None:
        assert self.server is not None  # noqa: S101  # watched once it was started
        await self.server.wait()
        record.status = "Failed"
        record.failure_reason = _STOPPED_TEXT.format(type=self.app_type, name=self.app_name)

    async def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None

    async def _kill_server(self) -> None:
        await self._end_watch()
        server, self.server = self.server, None
        if server is not None:
            await server.kill()
