"""Executed notebooks as assets in a real Airflow: events, the DAGs that wait for them, OpenLineage's own events."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio.assets import notebook_uri
from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.dags_test import DagRun

pytestmark = pytest.mark.airflow

DAGS = Path(__file__).parent / "dags"
REPORT = "lineage/räumlich 1/report.ipynb"


def write_source(studio: LocalStudio) -> None:
    cells = [new_code_cell("word = ''", metadata={"tags": ["parameters"]}), new_code_cell("len(word)")]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (studio.home / "lineage").mkdir(exist_ok=True)
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), studio.home / "lineage/source.ipynb"
    )


def asset_events(run: DagRun) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the asset and the extra of each event, by the task that told it."""
    kind = "asset" if run.query("SELECT 1 FROM sqlite_master WHERE name = 'asset_event'") else "dataset"
    sql = "SELECT source_task_id, uri, event.extra FROM {0}_event event JOIN {0} ON {0}.id = {0}_id"
    rows = run.query(sql.format(kind))
    found = {str(task): (str(uri), json.loads(str(extra))) for task, uri, extra in rows}
    assert len(found) == len(rows)
    return found


def waiting_dags(run: DagRun) -> dict[str, str]:
    """Return which asset has queued which DAG."""
    kind = "asset" if run.query("SELECT 1 FROM sqlite_master WHERE name = 'asset_event'") else "dataset"
    sql = "SELECT target_dag_id, uri FROM {0}_dag_run_queue JOIN {0} ON {0}.id = {0}_id"
    return {str(dag): str(uri) for dag, uri in run.query(sql.format(kind))}


def test_an_executed_notebook_starts_other_dags(
    dags_test: Callable[..., DagRun], spaces: LocalStudio, tmp_path: Path
) -> None:
    write_source(spaces)
    told = tmp_path / "openlineage.json"
    run = dags_test(
        "lineage_producer",
        {
            **spaces.environment,
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(told), "append": True}
            ),
        },
        write_dags=True,
    )

    assert run.code == 0, run.text
    events = asset_events(run)
    assert events.keys() == {"report", "alias"}
    fixed = notebook_uri(REPORT, domain_id=spaces.domain_id, space_name=spaces.space_name)
    for task, (uri, extra) in events.items():
        assert uri == extra["output_uri"], task
        assert (extra["notebook_path"], extra["status"], extra["skipped"]) == (
            "lineage/source.ipynb",
            "success",
            False,
        )
        assert (spaces.home / extra["output_path"]).exists()
    assert events["report"][0] == fixed
    assert events["report"][1]["output_path"] == REPORT
    assert events["report"][1]["cells_executed"] == 3
    assert waiting_dags(run) == {"lineage_of_report": fixed, "lineage_of_any": events["alias"][0]}

    # A real listener has told a real transport.
    complete = {
        event["job"]["name"]: event
        for event in map(json.loads, filter(None, told.read_text().splitlines()))
        if event["eventType"] == "COMPLETE"
    }
    for task, (uri, _) in events.items():
        event = complete[f"lineage_producer.{task}"]
        assert uri in [f"{one['namespace']}/{one['name']}" for one in event["outputs"]]
        assert f"{spaces.domain_id}/space/{spaces.space_name}/lineage/source.ipynb" in [
            f"{one['namespace'].removeprefix('sagemaker-studio://')}/{one['name']}" for one in event["inputs"]
        ]
        tags = {tag["key"]: tag["value"] for tag in event["run"]["facets"]["tags"]["tags"]}
        assert tags["smstudio.status"] == "success"
    rows = [one["name"] for one in complete["lineage_producer.alias"]["inputs"]]
    assert "rows.parquet" in rows

    assert run.leaks([*spaces.secrets(), "/auth?token="]) == []
    for kept in (json.dumps(events), told.read_text()):
        assert [one for one in spaces.secrets() if one in kept] == []
    assert "tell-nobody" not in json.dumps(events)
