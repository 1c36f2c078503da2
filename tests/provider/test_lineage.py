"""What a run tells Airflow's assets and OpenLineage: the operator against a local Studio, with Airflow's own parts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.utils.state import TaskInstanceState
from nbformat.v4 import new_code_cell

from airflow_provider_smstudio.assets import notebook_uri
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.studio.errors import CellError, InvalidInputError
from tests.helpers.quiet_parts import (
    Asset,
    AssetAlias,
    AssetRef,
    ExtractorManager,
    OLDataset,
    OperatorLineage,
    OutletEventAccessors,
    Serde,
)
from tests.provider.deferring import SLOW, defer, deferrable, fire, rebuilt
from tests.provider.running import CLASSIC_KERNEL, TaskInstance, operator, write

pytestmark = pytest.mark.usefixtures("no_waiting")

REPORT = Asset("s3://bucket/report.html")
ANY = AssetAlias("executed-notebooks")
DEFAULTS = new_code_cell("word = ''", metadata={"tags": ["parameters"]})
HANDS_OUT = "display({'application/json': 'handed-out'}, metadata={'smstudio': {'name': 'n'}}, raw=True)"


def context(ti: TaskInstance | None = None) -> Any:
    return {"ti": ti or TaskInstance(), "outlet_events": OutletEventAccessors()}


def through_alias(told: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the assets that were added to the alias, with their events' extras."""
    accessor = told["outlet_events"][ANY]
    if hasattr(accessor, "asset_alias_events"):
        return [(event.dest_asset_key.uri, event.extra) for event in accessor.asset_alias_events]
    return [(event["dest_dataset_uri"], event["extra"]) for event in accessor.dataset_alias_events]


def uri_of(studio: LocalStudio, path: str) -> str:
    if studio.flavour == "classic":
        return notebook_uri(path, domain_id=studio.domain_id, user_profile_name=studio.user_profile_name)
    return notebook_uri(path, domain_id=studio.domain_id, space_name=studio.space_name)


def facts(studio: LocalStudio, result: dict[str, Any]) -> dict[str, Any]:
    names = "notebook_path output_path output_url status started_at duration kernel_name "
    names += "instance_type cells cells_executed resumed skipped"
    counted = {"cells_failed": len(result["failed_cells"]), "cells_incomplete": len(result["incomplete_cells"])}
    return {
        **{name: result[name] for name in names.split()},
        **counted,
        "output_uri": uri_of(studio, result["output_path"]),
    }


def extract(
    task: SageMakerStudioNotebookOperator, state: TaskInstanceState = TaskInstanceState.SUCCESS
) -> OperatorLineage[Any, Any]:
    """Have OpenLineage's provider ask the task, as its listener does."""
    found: OperatorLineage[Any, Any] = ExtractorManager().extract_metadata(
        dagrun=SimpleNamespace(run_id="r"), task=task, task_instance_state=state, task_instance=TaskInstance()
    )
    return found


def named(found: list[OLDataset]) -> list[str]:
    return [f"{one.namespace}/{one.name.removeprefix('/')}" for one in found]


def tags(found: OperatorLineage[Any, Any]) -> dict[str, str]:
    return {tag.key: tag.value for tag in found.run_facets["tags"].tags} if found.run_facets else {}


@pytest.fixture(params=["lab", "classic"])
def studio(request: pytest.FixtureRequest) -> LocalStudio:
    local: LocalStudio = request.getfixturevalue(request.param)
    return local


def test_a_run_is_told_to_assets_and_to_openlineage(studio: LocalStudio) -> None:
    told = context()
    kernel = CLASSIC_KERNEL if studio.flavour == "classic" else "python3"
    path = write(studio, DEFAULTS, HANDS_OUT, "1/0", kernel=kernel)
    # Outlets may be anything; what is no asset is none of ours.
    outlets = [REPORT, ANY, SimpleNamespace(uri="s3://bucket/other")]
    task = operator(studio, path, parameters={"word": "tell-nobody"}, allow_errors=True, outlets=outlets)
    result = task.execute(told)
    expected = facts(studio, result)
    assert expected["cells_failed"] == 1
    assert result["values"] == {"n": "handed-out"}
    assert told["outlet_events"][REPORT].extra == expected
    assert through_alias(told) == [(expected["output_uri"], expected)]
    assert len(told["outlet_events"]) == 2
    # 2.11 puts an alias event's extra into a set.
    assert frozenset(expected.items())

    found = extract(task)
    assert named(found.inputs) == [uri_of(studio, path)]
    assert named(found.outputs) == [expected["output_uri"], "s3://bucket/report.html"]
    assert {one.namespace for one in found.inputs} == {f"sagemaker-studio://{studio.domain_id}"}
    assert tags(found) == {
        f"smstudio.{name}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in expected.items()
    }
    facet = Serde.to_json(found.run_facets["tags"])
    assert json.loads(facet)["_schemaURL"].endswith("/TagsRunFacet.json#/$defs/TagsRunFacet")

    kept = json.dumps(expected) + facet
    assert studio.secrets()
    assert [one for one in (*studio.secrets(), "tell-nobody", "handed-out") if one in kept] == []


def test_what_somebody_has_told_already_stays(lab: LocalStudio) -> None:
    told = context()
    path = write(lab, "1")
    output = f"{path.removesuffix('.ipynb')}-done.ipynb"
    told["outlet_events"][REPORT].extra.update({"status": "mine", "rows": 3})
    told["outlet_events"][ANY].add(Asset("s3://bucket/other"), extra={"rows": 4})
    told["outlet_events"][ANY].add(Asset(uri_of(lab, output)), extra={"cells": None, "rows": 5})
    result = operator(lab, path, output_path=output, outlets=[REPORT, ANY]).execute(told)
    expected = facts(lab, result)
    assert told["outlet_events"][REPORT].extra == {**expected, "status": "mine", "rows": 3}
    assert through_alias(told) == [
        ("s3://bucket/other", {"rows": 4}),
        (uri_of(lab, output), {**expected, "cells": None, "rows": 5}),
    ]


def test_a_run_that_is_skipped_tells_of_the_one_that_was_not(lab: LocalStudio) -> None:
    path, ti = write(lab, "1"), TaskInstance()
    arguments: dict[str, Any] = {"skip_if_output_complete": True, "outlets": [REPORT, ANY]}
    first = operator(lab, path, **arguments).execute(context(ti))
    told = context(ti)
    task = operator(lab, path, **arguments)
    again = task.execute(told)
    assert again["skipped"] is True
    expected = {**facts(lab, first), "skipped": True}
    assert told["outlet_events"][REPORT].extra == expected
    assert through_alias(told) == [(uri_of(lab, first["output_path"]), expected)]
    assert tags(extract(task))["smstudio.skipped"] == "true"


def test_a_deferred_run(lab: LocalStudio) -> None:
    path, told = write(lab, SLOW), context()
    event = fire(rebuilt(defer(deferrable(lab, path), told["ti"])))
    task = deferrable(lab, path, outlets=[REPORT, ANY])  # in another process, it knows nothing of the first half
    result = task.execute_complete(told, event)
    expected = facts(lab, result)
    assert told["outlet_events"][REPORT].extra == expected
    assert through_alias(told) == [(uri_of(lab, result["output_path"]), expected)]
    found = extract(task)
    assert named(found.inputs) == [uri_of(lab, path)]
    assert named(found.outputs) == [uri_of(lab, result["output_path"]), "s3://bucket/report.html"]
    assert tags(found)["smstudio.status"] == "success"


def test_a_path_that_is_too_long_for_airflow_is_no_reason_to_fail(
    lab: LocalStudio, caplog: pytest.LogCaptureFixture
) -> None:
    told = context()
    output = "/".join(["ä" * 100] * 3) + "/out.ipynb"  # six characters each, percent-encoded
    task = operator(lab, write(lab, "1"), output_path=output, create_output_folder=True, outlets=[REPORT, ANY])
    caplog.set_level(logging.WARNING)
    result = task.execute(told)
    assert result["output_path"] == output
    assert told["outlet_events"][REPORT].extra["output_path"] == output
    assert "output_uri" not in told["outlet_events"][REPORT].extra
    assert through_alias(told) == []
    assert "characters, percent-encoded, and Airflow accepts 1500: it is left out of the lineage" in caplog.text
    assert extract(task).outputs == [OLDataset("s3://bucket", "report.html")]


def test_an_outlet_that_cannot_be_told_does_not_fail_the_run(
    lab: LocalStudio, caplog: pytest.LogCaptureFixture
) -> None:
    """A reference to an asset is looked up by Airflow 3, which may fail; 2.11 has no references."""

    class Broken(OutletEventAccessors):
        def __getitem__(self, key: Any) -> Any:
            if key != REPORT:
                raise RuntimeError("not found")
            return super().__getitem__(key)

    references = AssetRef is not Asset  # type: ignore[comparison-overlap]  # in 2.11 both are one class
    first = Asset.ref(name="unknown") if references else Asset("s3://bucket/unknown")
    told: Any = {"ti": TaskInstance(), "outlet_events": Broken()}
    result = operator(lab, write(lab, "1"), outlets=[first, REPORT]).execute(told)
    assert told["outlet_events"][REPORT].extra == facts(lab, result)
    assert "gets no facts of the run: not found" in caplog.text


@pytest.mark.parametrize("half", ["at once", "deferred"])
def test_a_run_that_failed_tells_openlineage_and_no_asset(lab: LocalStudio, half: str) -> None:
    path, told = write(lab, SLOW, "1/0"), context()
    if half == "at once":
        task = operator(lab, path, outlets=[ANY])
        with pytest.raises(CellError) as raised:
            task.execute(told)
    else:
        event = fire(rebuilt(defer(deferrable(lab, path), told["ti"])))
        task = deferrable(lab, path, outlets=[ANY])
        with pytest.raises(CellError) as raised:
            task.execute_complete(told, event)
    assert len(told["outlet_events"]) == 0
    found = extract(task, TaskInstanceState.FAILED)
    assert named(found.inputs) == [uri_of(lab, path)]
    assert named(found.outputs) == [uri_of(lab, str(raised.value.output_path))]
    assert found.run_facets == {}  # the error is told by the listener itself


def test_openlineage_of_a_run_that_never_began(lab: LocalStudio) -> None:
    task = operator(lab, "none.ipynb", inlets=[Asset("s3://bucket/rows")])
    with pytest.raises(InvalidInputError):
        task.execute(context())
    found = extract(task, TaskInstanceState.FAILED)
    assert named(found.inputs) == [uri_of(lab, "none.ipynb"), "s3://bucket/rows"]
    assert found.outputs == []
    task.space_name = None
    task._lineage = None
    with pytest.raises(InvalidInputError, match="space_name is missing"):
        task.execute(context())
    assert named(extract(task, TaskInstanceState.FAILED).inputs) == ["s3://bucket/rows"]


def test_what_the_user_declares_is_told_as_well(lab: LocalStudio, tmp_path: Path) -> None:
    path = write(lab, "1")
    source = tmp_path / "source.ipynb"
    source.write_text((lab.home / path).read_text())
    output = f"{path.removesuffix('.ipynb')}-done.ipynb"
    task = operator(
        lab,
        path,
        upload_from=str(source),
        output_path=output,
        inlets=[Asset("s3://bucket/rows"), OLDataset("postgres://db:5432", "sales.public.rows"), ANY],
        # The executed notebook itself is named but once.
        outlets=[REPORT, Asset(uri_of(lab, output)), ANY],
    )
    task.execute(context())
    found = extract(task)
    assert found.inputs[0] == OLDataset("file", str(source))
    assert named(found.inputs[1:2]) == [uri_of(lab, path)]
    assert sorted(named(found.inputs[2:])) == ["postgres://db:5432/sales.public.rows", "s3://bucket/rows"]
    assert named(found.outputs) == [uri_of(lab, output), "s3://bucket/report.html"]


def test_an_upload_from_s3_is_named_as_openlineage_names_it() -> None:
    from airflow_provider_smstudio._lineage import RunLineage

    home = "sagemaker-studio://d-abc/space/reports"
    run = RunLineage(home, "daily.ipynb", "s3://bucket/some where/a.ipynb")
    assert run.inputs() == [
        OLDataset("s3://bucket", "some where/a.ipynb"),
        OLDataset("sagemaker-studio://d-abc", "space/reports/daily.ipynb"),
    ]


def test_a_second_half_that_does_not_know_its_studio_still_ends(
    lab: LocalStudio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ti = write(lab, SLOW), TaskInstance()
    event = fire(rebuilt(defer(deferrable(lab, path), ti)))
    task = deferrable(lab, path, outlets=[REPORT], studio_conn_id="removed_meanwhile")
    monkeypatch.setattr(SageMakerStudioNotebookOperator, "log", logging.getLogger("under-test"))
    told = context(ti)
    assert task.execute_complete(told, event)["status"] == "success"
    assert "the run's lineage is not known" in caplog.text
    assert len(told["outlet_events"]) == 0
    assert named(extract(task).outputs) == ["s3://bucket/report.html"]
