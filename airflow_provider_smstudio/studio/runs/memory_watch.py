"""Looks now and then how full the memory of a run's instance is, and reports what is worth it."""

from __future__ import annotations

from typing import Protocol

from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.memory import MemoryGauge
from airflow_provider_smstudio.studio.jupyter.background import Begin
from airflow_provider_smstudio.studio.jupyter.instance_meter import MAX_AGE, InstanceMeter


class MeteredRun(Protocol):
    """What :func:`look` knows of a run."""

    memory: MemoryGauge

    @property
    def at_work(self) -> bool:
        """Whether its kernel has answered and it is not over."""


def look(run: MeteredRun, meter: InstanceMeter, begin: Begin, now: float) -> list[ev.Event]:
    """Have a run take the newest reading when it is time; return what is worth telling. It waits for nothing."""
    gauge = run.memory
    if not gauge.due(now) or not run.at_work:
        return []
    gauge.wait(now)  # so that a run with a thousand messages a second does not look a thousand times
    reading = meter.newest(now, begin, max_age=min(gauge.interval * 2 / 3, MAX_AGE))
    change = gauge.take(reading, now) if reading is not None else None
    return [ev.InstanceMemory(reading, change)] if reading is not None and change is not None else []
