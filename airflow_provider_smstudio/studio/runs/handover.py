"""The hand-over of a run to another process, as Airflow's database keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

from airflow_provider_smstudio.studio.runs.spec import RunSpec


@dataclass(frozen=True)
class Handover:
    """All that another process needs to continue a run. It is plain JSON, without secrets and parameters.

    :ivar spec: the run. Its output path is set. Its parameters are left out, since the notebook contains them.
    :ivar session_id: the ID of the Jupyter session.
    :ivar owner: the name of the process that hands over, as in the name of the Jupyter session. A process that
        continues the run on its behalf has a name that begins with this text. Processes of a later try do not.
    :ivar kernel_name: the name of the kernel.
    :ivar instance_type: the instance type under the kernel, if it is known.
    :ivar startup_seconds: see :class:`RunResult`.
    :ivar unbroken: whether nothing was lost so far: the process received every message and saved the notebook.
    :ivar resumed: whether an earlier try began the run.
    :ivar shown: how many outputs of the running cell the task's log already contains.
    :ivar memory_level: the memory level that the log already reports: :attr:`MemoryGauge.level`.
    """

    spec: RunSpec
    session_id: str
    owner: str
    kernel_name: str
    instance_type: str | None
    startup_seconds: float
    unbroken: bool
    resumed: bool
    shown: int = 0
    memory_level: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the hand-over as a dict of plain values."""
        return asdict(replace(self, spec=replace(self.spec, parameters={}, upload_from=None)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Handover:
        """Build a hand-over from the dict of :meth:`as_dict`, perhaps of another version. Ignore unknown keys."""
        own, spec = ({field.name for field in dataclass_fields(kind)} for kind in (cls, RunSpec))
        known = {name: value for name, value in fields.items() if name in own}
        return cls(**{**known, "spec": RunSpec(**{k: v for k, v in fields["spec"].items() if k in spec})})
