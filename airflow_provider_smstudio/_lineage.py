"""What is told of a notebook's run to whoever follows data: to assets' events, and to OpenLineage."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_smstudio import assets
from airflow_provider_smstudio._compat import outlet_extras, own_lineage
from airflow_provider_smstudio.studio.errors import InvalidInputError

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import RunFacet

    from airflow_provider_smstudio._compat import Context, OperatorLineage
    from airflow_provider_smstudio.hooks.studio import StudioSettings
    from airflow_provider_smstudio.studio.runs.spec import RunSpec

log = logging.getLogger(__name__)

# Plain values only: Airflow 2.11 fails the task when an alias's event has a list or a dict in its extra.
_FACTS = (
    "notebook_path",
    "output_path",
    "output_url",
    "status",
    "started_at",
    "duration",
    "kernel_name",
    "instance_type",
    "cells",
    "cells_executed",
    "resumed",
    "skipped",
)
_TAG_SOURCE = "airflow-provider-smstudio"


@dataclass
class RunLineage:
    """What a task knows of its run, kept for a listener that asks later and may look nothing up.

    OpenLineage's listener asks in a forked process, which must not use the task's connection to Airflow.

    :ivar home: the URI of the Studio home.
    :ivar notebook_path: the source.
    :ivar upload_from: what was copied there before.
    :ivar output_path: the executed notebook, once there is one.
    :ivar facts: how the run went, once it has ended well.
    """

    home: str
    notebook_path: str
    upload_from: str | None = None
    output_path: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: RunSpec, settings: StudioSettings) -> RunLineage:
        """Begin with what is known before a run: all but the executed notebook."""
        home = assets.home_uri(
            settings.domain_id,
            space_name=settings.space_name,
            user_profile_name=None if settings.space_name else settings.user_profile_name,
        )
        return cls(home, spec.notebook_path, spec.upload_from)

    @property
    def output_uri(self) -> str | None:
        """The executed notebook's URI; None where there is none, or none that Airflow takes."""
        return self._uri(self.output_path)

    def ended(self, result: Mapping[str, Any]) -> None:
        """Take down how the run went; see :class:`~airflow_provider_smstudio.studio.RunResult`."""
        self.output_path = str(result["output_path"])
        uri = {"output_uri": self.output_uri}
        facts = {**uri, **{name: result.get(name) for name in _FACTS}}
        facts["cells_failed"] = len(result.get("failed_cells") or ())
        facts["cells_incomplete"] = len(result.get("incomplete_cells") or ())
        self.facts = {name: value for name, value in facts.items() if value is not None}

    def tell_outlets(self, context: Context, outlets: Sequence[Any]) -> None:
        """Put the facts into the events of a task's outlets; what somebody has put there already stays.

        :param context: the context of the task instance.
        :param outlets: the task's outlets; an alias gets the executed notebook as an asset.
        """
        for outlet in outlets:
            try:
                for extra in outlet_extras(context, outlet, self.output_uri):
                    for name, value in self.facts.items():
                        extra.setdefault(name, value)
            except Exception as error:  # hours of work must not be lost for the want of a note about it
                log.warning("the event of %r gets no facts of the run: %s", outlet, error)

    def inputs(self) -> list[Dataset]:
        """Return the source notebook, and what was uploaded there, as OpenLineage's data sets."""
        return [*_uploaded(self.upload_from), *_notebook(self._uri(self.notebook_path))]

    def outputs(self) -> list[Dataset]:
        """Return the executed notebook, if there is one, as an OpenLineage data set."""
        return _notebook(self.output_uri)

    def run_facets(self) -> dict[str, RunFacet]:
        """Return the facts as OpenLineage's tags of a run."""
        from openlineage.client.facet_v2 import tags_run

        tags = [
            tags_run.TagsRunFacetFields(key=f"smstudio.{name}", value=_tag(value), source=_TAG_SOURCE)
            for name, value in self.facts.items()
        ]
        return {"tags": tags_run.TagsRunFacet(tags=tags)} if tags else {}

    def _uri(self, path: str | None) -> str | None:
        if not path:
            return None
        try:
            return assets.uri_below(self.home, path)
        except InvalidInputError as error:
            log.warning("%s: it is left out of the lineage", error)
            return None


def openlineage(run: RunLineage | None, task: Any, task_instance: Any) -> OperatorLineage[Any, Any]:
    """Return what OpenLineage is told of a run that has ended, well or not.

    :param run: what is known of it; None where it did not even begin.
    :param task: the operator. Its own inlets and outlets, which OpenLineage's provider leaves out for
        operators that tell something themselves, are told as well.
    :param task_instance: its task instance.
    """
    lineage = own_lineage(task, task_instance)
    if run is not None:
        lineage.inputs = _distinct([*run.inputs(), *lineage.inputs])
        lineage.outputs = _distinct([*run.outputs(), *lineage.outputs])
        lineage.run_facets = {**lineage.run_facets, **run.run_facets()}
    return lineage


def _distinct(found: list[Dataset]) -> list[Dataset]:
    # The later one wins: what the user declares may have facets.
    return list({(one.namespace, one.name): one for one in found}.values())


def _notebook(uri: str | None) -> list[Dataset]:
    return [assets.openlineage_dataset(uri)] if uri else []


def _uploaded(source: str | None) -> list[Dataset]:
    """Name a file or an S3 object by OpenLineage's naming rules."""
    from openlineage.client.event_v2 import Dataset

    if not source:
        return []
    if not source.startswith("s3://"):
        return [Dataset(namespace="file", name=os.path.abspath(source))]
    bucket, _, key = source.removeprefix("s3://").partition("/")
    return [Dataset(namespace=f"s3://{bucket}", name=key)]


def _tag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
