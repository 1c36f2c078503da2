"""Studio's idle shutdown: it asks the app's server for the time of its last activity."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.server.app_lifecycle import AppLifecycle, AppRecord
from airflow_provider_smstudio.local.transport.http import HttpError, fetch

_FORMAT = "%Y-%m-%dT%H:%M:%S.%f%z"
_LONGEST_PAUSE = 1.0
_PAUSE_WHEN_OFF = 0.25
_ANSWER_SECONDS = 10.0


class IdleShutdown:
    """Stops an app that is idle for longer than the switch ``idle_timeout`` allows.

    The server's ``/api/idle`` reports the time of the last activity. Only the kernels of *sessions*, and
    terminals, count. Even a busy kernel does not count while it prints nothing. The time starts again when the app
    starts and when the switch is set.
    """

    def __init__(self, slot: AppLifecycle, switches: Switches) -> None:
        self._slot = slot
        self._switches = switches
        self._watched: tuple[AppRecord | None, float | None] = (None, None)
        self._since = 0.0

    async def run(self) -> None:
        """Watch the app until cancelled."""
        while True:
            timeout = self._switches.idle_timeout
            watched = (self._slot.record, timeout)
            if watched[0] is not self._watched[0] or watched[1] != self._watched[1]:
                self._watched, self._since = watched, time.time()
            if timeout is not None and await self._is_idle(timeout):
                self._slot.delete()
                await self._slot.settled()
            await asyncio.sleep(_PAUSE_WHEN_OFF if timeout is None else min(timeout / 4, _LONGEST_PAUSE))

    async def _is_idle(self, timeout: float) -> bool:
        port = self._slot.port
        if port is None:
            return False
        try:
            answer = fetch(port, "GET", f"{self._slot.base}/api/idle")
            status, told = await asyncio.wait_for(answer, _ANSWER_SECONDS)
        except (OSError, HttpError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return False
        if status != 200 or self._slot.port != port:
            return False
        # The time ends with a lower-case "z", which strptime does not accept.
        active = datetime.strptime(told["lastActiveTimestamp"].upper(), _FORMAT).timestamp()
        return time.time() - max(active, self._since) > timeout
