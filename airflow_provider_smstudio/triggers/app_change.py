"""The trigger that starts or stops an app, and waits until this is done."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_smstudio._compat import BaseTrigger, TriggerEvent, other_runs
from airflow_provider_smstudio._secrets import mask_login_here
from airflow_provider_smstudio.triggers.notebook import EARLIEST_EVENT

if TYPE_CHECKING:
    from airflow_provider_smstudio.studio.client import Studio
    from airflow_provider_smstudio.studio.sagemaker.app_start import AppStarter
    from airflow_provider_smstudio.studio.sagemaker.app_stop import AppStopper

_LONGEST_PAUSE = 120.0


class SageMakerStudioAppChangeTrigger(BaseTrigger):
    """Continues the start or the stop of an app that a task has begun.

    The trigger holds no state that it cannot find out again, so its triggerer may be replaced at any time. The
    event is a dict: ``status`` is ``success`` with a ``result``, or ``error`` or ``timeout`` with an ``error``
    (:func:`~airflow_provider_smstudio.studio.errors.to_plain`).

    :param studio: the arguments of :class:`~airflow_provider_smstudio.hooks.studio.SageMakerStudioHook`.
    :param action: ``start`` or ``stop``.
    :param request: the fields of
        :class:`~airflow_provider_smstudio.studio.sagemaker.app_start.StartRequest`, or of
        :class:`~airflow_provider_smstudio.studio.sagemaker.app_stop.StopRequest` with the ``dag_id``.
    :param until: when to stop waiting, in seconds since the epoch.
    :param requested_at: when the task requested the start, in seconds since the epoch; None if it did not.
    """

    def __init__(
        self,
        studio: dict[str, Any],
        action: str,
        request: dict[str, Any],
        until: float,
        requested_at: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.studio = studio
        self.action = action
        self.request = request
        self.until = until
        self.requested_at = requested_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as plain JSON and without a secret."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "studio": self.studio,
                "action": self.action,
                "request": self.request,
                "until": self.until,
                "requested_at": self.requested_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Take steps until no step is left, then fire."""
        # The first import of the client takes half a second, which is too long for an event loop.
        await asyncio.to_thread(import_module, "airflow_provider_smstudio.studio.runs.shared_resources")

        from airflow_provider_smstudio.studio.errors import AppError, StudioError, to_plain
        from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources

        began = time.monotonic()
        payload: dict[str, Any]
        try:
            async with SharedResources.use() as resources:
                key = json.dumps(self.studio, sort_keys=True, default=str)
                async with resources.studio(f"app {key}", self._make_studio) as shared:
                    result = await self._steps(shared)
            if result is None:
                late = AppError(f"{self._told}, and the timeout has passed")
                payload = {"status": "timeout", "error": to_plain(late)}
            else:
                payload = {"status": "success", "result": result}
        except StudioError as error:
            payload = {"status": "error", "error": to_plain(error)}
        await asyncio.sleep(max(began + EARLIEST_EVENT - time.monotonic(), 0))
        yield TriggerEvent(payload)

    _told = ""
    _others = (0, 0)

    async def _steps(self, shared: Any) -> dict[str, Any] | None:
        """Take steps until no step is left, and return the result. Return None at the timeout."""
        from airflow_provider_smstudio.studio.errors import ControlPlaneError
        from airflow_provider_smstudio.studio.sagemaker.readiness import may_pass

        studio: Studio = shared.studio
        dag_id = self.request.get("dag_id")
        worker = self._starter(studio) if self.action == "start" else self._stopper(studio)
        failures = 0
        while True:
            if dag_id:
                # Airflow forbids this request in a plain thread.
                self._others = await sync_to_async(other_runs)(dag_id)
            try:
                found = await shared.call(worker.step)
                text, wait, failures = found.text, found.wait, 0
            except ControlPlaneError as error:
                if not may_pass(error):
                    raise
                failures += 1
                text, wait = str(error), min(5.0 * 2**failures, _LONGEST_PAUSE)
            if text != self._told:
                self.log.info("%s", text)
                self._told = text
            if wait is None:
                return dict(await shared.call(worker.result, found))
            left = self.until - time.time()
            if left <= 0:
                return None
            await asyncio.sleep(min(wait * random.uniform(0.8, 1.2), left))  # noqa: S311  # no secret

    def _starter(self, studio: Studio) -> AppStarter:
        from airflow_provider_smstudio.studio.sagemaker.app_start import AppStarter, StartRequest

        return AppStarter(studio.control_plane, StartRequest(**self.request), requested_at=self.requested_at)

    def _stopper(self, studio: Studio) -> AppStopper:
        from airflow_provider_smstudio.studio.sagemaker.app_stop import AppStopper, StopRequest

        request = StopRequest(**{key: value for key, value in self.request.items() if key != "dag_id"})
        return AppStopper(studio.control_plane, studio.server, request, other_runs=lambda: self._others)

    async def _make_studio(self) -> Studio:
        from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

        def make() -> Studio:
            return SageMakerStudioHook(**self.studio).make_studio(on_secret=mask_login_here)

        return await sync_to_async(make)()  # it looks up connections, which Airflow forbids in a plain thread
