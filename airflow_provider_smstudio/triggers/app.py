"""The trigger that waits until a user's Studio is ready to run notebooks."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_smstudio._compat import BaseTrigger, TriggerEvent
from airflow_provider_smstudio._secrets import mask_login_here
from airflow_provider_smstudio.triggers.notebook import EARLIEST_EVENT

if TYPE_CHECKING:
    from airflow_provider_smstudio.studio.client import Studio

_LONGEST_PAUSE = 300.0


class SageMakerStudioAppTrigger(BaseTrigger):
    """Checks regularly whether a Studio app is ready. Fires when it is ready, or when waiting cannot help.

    The time between two checks varies at random, so that many waiting tasks do not send requests at the same
    moment. After temporary errors, such as a throttled call, it grows. The event is a dict: ``status`` is
    ``success``, or ``error`` with an ``error`` (:func:`~airflow_provider_smstudio.studio.errors.to_plain`).

    :param studio: the arguments of :class:`~airflow_provider_smstudio.hooks.studio.SageMakerStudioHook`.
    :param wait_for_start: also wait for an app that is stopped or was never started.
    :param poke_interval: seconds between two checks.
    """

    def __init__(self, studio: dict[str, Any], wait_for_start: bool = False, poke_interval: float = 30.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.studio = studio
        self.wait_for_start = wait_for_start
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as plain JSON and without a secret."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "studio": self.studio,
                "wait_for_start": self.wait_for_start,
                "poke_interval": self.poke_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check the app until there is a result, then fire."""
        # The first import of the client takes half a second, which is too long for an event loop.
        await asyncio.to_thread(import_module, "airflow_provider_smstudio.studio.runs.shared_resources")

        from airflow_provider_smstudio.studio.errors import StudioError, to_plain
        from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources
        from airflow_provider_smstudio.studio.sagemaker.readiness import look

        began = time.monotonic()
        payload: dict[str, Any] = {"status": "success"}
        try:
            async with SharedResources.use() as resources:
                key = json.dumps(self.studio, sort_keys=True, default=str)
                async with resources.studio(f"app {key}", self._make_studio) as shared:
                    failures = 0
                    while True:
                        found = await shared.call(
                            look,
                            shared.studio.check_ready,
                            title=shared.studio.control_plane.title,
                            wait_for_start=self.wait_for_start,
                            patient=True,
                        )
                        if found.ready:
                            break
                        failures = failures + 1 if found.failed else 0
                        waited = timedelta(seconds=round(time.monotonic() - began))
                        self.log.info("Waiting for %s so far: %s", waited, found.text)
                        pause = min(self.poke_interval * 2**failures, max(_LONGEST_PAUSE, self.poke_interval))
                        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
        except StudioError as error:
            payload = {"status": "error", "error": to_plain(error)}
        await asyncio.sleep(max(began + EARLIEST_EVENT - time.monotonic(), 0))
        yield TriggerEvent(payload)

    async def _make_studio(self) -> Studio:
        from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

        def make() -> Studio:
            return SageMakerStudioHook(**self.studio).make_studio(on_secret=mask_login_here)

        return await sync_to_async(make)()  # it looks up connections, which Airflow forbids in a plain thread
