"""Check at intervals how full the memory of a run's instance is, and report important changes."""

from __future__ import annotations

from typing import Protocol

from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.memory import MemoryGauge
from airflow_provider_smstudio.studio.jupyter.background import Begin
from airflow_provider_smstudio.studio.jupyter.instance_meter import MAX_AGE, InstanceMeter


class MeteredRun(Protocol):
    """The part of a run that :func:`look` uses."""

    memory: MemoryGauge

    @property
    def at_work(self) -> bool:
        """Whether the kernel has answered and the run is not over."""


def look(run: MeteredRun, meter: InstanceMeter, begin: Begin, now: float) -> list[ev.Event]:
    """Give the newest reading to a run when it is time, and return the events to report. It never waits."""
    gauge = run.memory
    if not gauge.due(now) or not run.at_work:
        return []
    gauge.wait(now)  # so that a run with a thousand messages a second does not check a thousand times
    reading = meter.newest(now, begin, max_age=min(gauge.interval * 2 / 3, MAX_AGE))
    change = gauge.take(reading, now) if reading is not None else None
    return [ev.InstanceMemory(reading, change)] if reading is not None and change is not None else []
