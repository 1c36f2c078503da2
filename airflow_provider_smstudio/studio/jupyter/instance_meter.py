"""Reads how full an instance's memory is, beside the runs. A reading never delays a run and never makes it fail.

All runs on one Jupyter server share its readings. Studio Classic does not have the endpoint. Images without the
extension from AWS do not have it either.
"""

from __future__ import annotations

import math
import time
from typing import Any

from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.background import Begin
from airflow_provider_smstudio.studio.protocol.instance_metrics import THRESHOLDS, Memory, Reading, read_memory

_PATH = "aws/sagemaker/api/instance/metrics"
_TIMEOUT = 5.0
MAX_AGE = 20.0
"""Seconds for which every run can use a reading."""

_PAUSE = 300.0
"""Seconds before the server is asked again, after an answer without the memory."""


class InstanceMeter:
    """Reads the memory of one Jupyter server's instance, and keeps the newest reading.

    :param session: the authenticated session.
    """

    def __init__(self, session: StudioSession) -> None:
        self._session = session
        self._newest: Reading | None = None
        self._busy = False
        self._asked_at = -math.inf
        self._quiet_until, self._quiet_login = -math.inf, 0

    def read(self) -> Reading | None:
        """Ask the server for the memory, which takes a few seconds at most.

        After a 404, the server is not asked again before the next login. After any other answer without the
        memory, it is not asked again for five minutes, or until the next login.

        :return: the reading, or None if the memory is not known. This method raises no error.
        """
        if self._is_quiet(time.monotonic()):
            return None
        status, document = self._ask(_PATH)
        memory: Memory | None = read_memory(document)
        now = time.monotonic()
        if memory is None:
            self._quiet_login = self._session.logins
            self._quiet_until = math.inf if status == 404 else now + _PAUSE
            return None
        kernels = None
        if memory.percent >= THRESHOLDS[0]:
            _, listed = self._ask("api/kernels")
            kernels = len(listed) if isinstance(listed, list) else None
        self._newest = Reading(memory, now, kernels)
        return self._newest

    def newest(self, now: float, begin: Begin, *, max_age: float = MAX_AGE) -> Reading | None:
        """Return the newest reading if it is fresh, else None. Do not wait for the server.

        :param now: the time of the monotonic clock.
        :param begin: runs a function in the background. It makes a new reading if the newest one is older than
            ``max_age`` seconds. A later call returns the new reading.
        :param max_age: see ``begin``, in seconds.
        """
        found = self._newest
        if found is None or now > found.at + max_age:
            self._begin(now, begin, max_age)
        return found if found is not None and now <= found.at + MAX_AGE else None

    def _begin(self, now: float, begin: Begin, pause: float) -> None:
        if self._busy or now < self._asked_at + pause or self._is_quiet(now):
            return
        self._busy, self._asked_at = True, now
        try:
            begin(self._in_background)
        except RuntimeError:  # no thread can be started, now or later
            self._busy = False

    def _in_background(self) -> None:
        try:
            self.read()
        finally:
            self._busy = False

    def _is_quiet(self, now: float) -> bool:
        if not self._session.app.has_metrics:
            return True
        return now < self._quiet_until and self._session.logins == self._quiet_login

    def _ask(self, path: str) -> tuple[int | None, Any]:
        """Return the status, and the JSON of a good answer; None for each that is missing."""
        try:
            response = self._session.glance(path, timeout=_TIMEOUT)
            return response.status_code, response.json() if response.status_code == 200 else None
        except Exception:  # any error: no run depends on a reading
            return None, None
