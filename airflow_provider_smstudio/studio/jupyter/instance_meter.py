"""Reads how full an instance's memory is, beside the runs: nothing here delays or fails one.

All that use one Jupyter server share its readings, however many they are. Classic has no such endpoint, nor have
images without the extension by AWS.
"""

from __future__ import annotations

import math
import time
from typing import Any

from airflow_provider_smstudio.studio.app_types import JUPYTER_LAB
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from airflow_provider_smstudio.studio.jupyter.background import Begin
from airflow_provider_smstudio.studio.protocol.instance_metrics import THRESHOLDS, Memory, Reading, read_memory

_PATH = "aws/sagemaker/api/instance/metrics"
_TIMEOUT = 5.0
MAX_AGE = 20.0
"""Seconds for which a reading is good for every run."""

_PAUSE = 300.0
"""Seconds after an answer that does not tell, before the server is asked again."""


class InstanceMeter:
    """The readings of one Jupyter server's instance.

    :param session: the authenticated session.
    """

    def __init__(self, session: StudioSession) -> None:
        self._session = session
        self._newest: Reading | None = None
        self._busy = False
        self._asked_at = -math.inf
        self._quiet_until, self._quiet_login = -math.inf, 0

    def read(self) -> Reading | None:
        """Ask the server, which takes some seconds at most.

        After a 404 it is not asked again before there was another login, after any other answer that does not tell
        for some minutes.

        :return: None where it is not known; nothing is ever raised.
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
        """Return the newest reading if it is fresh; it waits for nothing.

        :param now: the monotonic clock's reading.
        :param begin: has another reading made in the background if the newest one is older than ``max_age``
            seconds; a later call returns it.
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
        except RuntimeError:  # no thread is to be had, now or any more
            self._busy = False

    def _in_background(self) -> None:
        try:
            self.read()
        finally:
            self._busy = False

    def _is_quiet(self, now: float) -> bool:
        if self._session.app_type != JUPYTER_LAB:
            return True
        return now < self._quiet_until and self._session.logins == self._quiet_login

    def _ask(self, path: str) -> tuple[int | None, Any]:
        """Return the status and the JSON of a good answer, None for what there is not."""
        try:
            response = self._session.glance(path, timeout=_TIMEOUT)
            return response.status_code, response.json() if response.status_code == 200 else None
        except Exception:  # whatever it is: nobody has to know
            return None, None
