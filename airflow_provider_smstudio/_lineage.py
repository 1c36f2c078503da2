"""The facts of a notebook's run that asset events and OpenLineage receive."""

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

# Plain values only: Airflow 2.11 fails the task if the extra of an alias's event contains a list or a dict.
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
    """The facts of a run, stored for a listener that asks later and cannot look anything up.

    OpenLineage's listener runs in a forked process, which must not use the task's connection to Airflow.

    :ivar home: the URI of the Studio home.
    :ivar notebook_path: the path of the source notebook.
    :ivar upload_from: the file or S3 URL that is copied to ``notebook_path`` before the run, if any.
    :ivar output_path: the path of the executed notebook; None until it is known.
    :ivar facts: the result of the run; empty until the run has succeeded.
    """

    home: str
    notebook_path: str
    upload_from: str | None = None
    output_path: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: RunSpec, settings: StudioSettings) -> RunLineage:
        """Return the lineage of a run before it starts: everything except the executed notebook."""
        home = assets.home_uri(
            settings.domain_id,
            space_name=settings.space_name,
            user_profile_name=None if settings.space_name else settings.user_profile_name,
        )
        return cls(home, spec.notebook_path, spec.upload_from)

    @property
    def output_uri(self) -> str | None:
        """The URI of the executed notebook. None if there is no such notebook, or if its URI is not valid."""
        return self._uri(self.output_path)

    def ended(self, result: Mapping[str, Any]) -> None:
        """Record the result of the run; see :class:`~airflow_provider_smstudio.studio.RunResult`."""
        self.output_path = str(result["output_path"])
        uri = {"output_uri": self.output_uri}
        facts = {**uri, **{name: result.get(name) for name in _FACTS}}
        facts["cells_failed"] = len(result.get("failed_cells") or ())
        facts["cells_incomplete"] = len(result.get("incomplete_cells") or ())
        self.facts = {name: value for name, value in facts.items() if value is not None}

    def tell_outlets(self, context: Context, outlets: Sequence[Any]) -> None:
        """Write the facts into the events of a task's outlets. Do not replace values that are already there.

        :param context: the context of the task instance.
        :param outlets: the task's outlets. An alias gets the executed notebook as its asset.
        """
        for outlet in outlets:
            try:
                for extra in outlet_extras(context, outlet, self.output_uri):
                    for name, value in self.facts.items():
                        extra.setdefault(name, value)
            except Exception as error:  # a missing fact must not fail a run that may have taken hours
                log.warning("the event of %r gets no facts of the run: %s", outlet, error)

    def inputs(self) -> list[Dataset]:
        """Return the source notebook, and the file that was copied to it, as OpenLineage data sets."""
        return [*_uploaded(self.upload_from), *_notebook(self._uri(self.notebook_path))]

    def outputs(self) -> list[Dataset]:
        """Return the executed notebook, if there is one, as an OpenLineage data set."""
        return _notebook(self.output_uri)

    def run_facets(self) -> dict[str, RunFacet]:
        """Return the facts as the tags of an OpenLineage run."""
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
    """Return what OpenLineage receives about a run that has ended, with success or with an error.

    :param run: the facts of the run; None if it did not start.
    :param task: the operator. Its own inlets and outlets are included. OpenLineage's provider leaves them out for
        operators that report something themselves.
    :param task_instance: its task instance.
    """
    lineage = own_lineage(task, task_instance)
    if run is not None:
        lineage.inputs = _distinct([*run.inputs(), *lineage.inputs])
        lineage.outputs = _distinct([*run.outputs(), *lineage.outputs])
        lineage.run_facets = {**lineage.run_facets, **run.run_facets()}
    return lineage


def _distinct(found: list[Dataset]) -> list[Dataset]:
    # The later entry wins, because a data set that the user declares may have facets.
    return list({(one.namespace, one.name): one for one in found}.values())


def _notebook(uri: str | None) -> list[Dataset]:
    return [assets.openlineage_dataset(uri)] if uri else []


def _uploaded(source: str | None) -> list[Dataset]:
    """Return a file or an S3 object as a data set, named by OpenLineage's naming rules."""
    from openlineage.client.event_v2 import Dataset

    if not source:
        return []
    if not source.startswith("s3://"):
        return [Dataset(namespace="file", name=os.path.abspath(source))]
    bucket, _, key = source.removeprefix("s3://").partition("/")
    return [Dataset(namespace=f"s3://{bucket}", name=key)]


def _tag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
