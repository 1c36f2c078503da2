"""Who a run is, which sessions are ours, and when an earlier run is gone on with."""

from __future__ import annotations

from copy import deepcopy

import pytest
from nbformat.v4 import new_markdown_cell, new_output

from airflow_provider_smstudio.studio.runs import identity, saved_run
from airflow_provider_smstudio.studio.runs.identity import identity_of, is_our_session, owner_of
from tests.helpers.run_driver import code, prepared

# --- Who


def test_a_key_makes_the_same_run_at_every_try():
    first, second = identity_of("dag/task/run/1", "name"), identity_of("dag/task/run/1", "name")
    assert first == second
    assert first.key == "48db2e39acb3a264bd3e955367482ffa"
    assert first.client_session == second.client_session
    assert first.session_path("a/b.ipynb") == second.session_path("a/b.ipynb")


def test_other_keys_make_other_runs():
    keys = ["a", "b", "a ", "A", "a/b", "ü", "\udcff", "a" * 10_000]
    runs = [identity_of(key, "same name") for key in keys]
    assert len({run.key for run in runs}) == len(keys)
    assert len({run.client_session for run in runs}) == len(keys)
    assert len({run.session_path("n.ipynb") for run in runs}) == len(keys)


@pytest.mark.parametrize("key", [None, ""])
def test_a_run_without_a_key_is_nobody_elses(key):
    assert identity_of(key, "x").key != identity_of(key, "x").key
    assert len(identity_of(key, "x").key) == 32


def test_the_client_session_tells_the_key_to_nobody():
    run = identity_of("key", "name")
    assert run.key not in run.client_session
    assert len(run.client_session) == 32


# --- Sessions


@pytest.mark.parametrize("path", ["a.ipynb", "reports/a.ipynb", "reports/2026/täglich + mehr.ipynb", "no-suffix"])
def test_a_sessions_path_is_in_the_notebooks_folder_and_recognised(path):
    made = identity_of("key", "name").session_path(path)
    assert made.rpartition("/")[0] == path.rpartition("/")[0]
    assert is_our_session(made)


@pytest.mark.parametrize(
    "path",
    [
        None,
        7,
        "",
        "a.ipynb",
        "smstudio-notes.ipynb",
        "smstudio-/a.ipynb",
        f"smstudio-{'0' * 31}-a.ipynb",
        f"smstudio-{'g' * 32}-a.ipynb",
        f"smstudio-{'0' * 32}-a/b.ipynb",
        f"my-smstudio-{'0' * 32}-a.ipynb",
        f"smstudio-{'0' * 32}.ipynb",
    ],
)
def test_somebody_elses_session_is_not_taken_for_ours(path):
    assert not is_our_session(path)


@pytest.mark.parametrize(
    "name", ["dag task", "", "a [b]", "x [smstudio abc]", "x [smstudio abc cell 7]", "]", "line\nbreak"]
)
@pytest.mark.parametrize("cell", [None, 0, 12])
@pytest.mark.parametrize("since", [None, 1794000000])
def test_a_sessions_name_tells_its_owner_and_the_cell(name, cell, since):
    made = identity_of("key", name).session_name("0123456789ab", cell, since=since)
    assert made.startswith(name)
    assert owner_of(made) == ("0123456789ab", cell)
    assert identity.watched_since(made) == since


@pytest.mark.parametrize(
    "name", [None, 5, "", "a.ipynb", "x [smstudio abc] y", "x [smstudio ]", "x [smstudio xyz]"]
)
def test_other_names_tell_nothing(name):
    assert owner_of(name) == (None, None)
    assert identity.watched_since(name) is None


# --- What is run


def test_the_fingerprint_is_that_of_what_is_run():
    def of(*cells, kernel="python3", parameters=None):
        return saved_run.fingerprint(prepared(*cells), kernel, parameters or {})

    assert of("a", "b") == of("a", "b")
    others = [
        of("a", "b"),
        of("a", "c"),
        of("b", "a"),
        of("a"),
        of("a", code("b", "skip-execution")),
        of("a", new_markdown_cell("b")),
        of("a", "b", kernel="ir"),
        of("a", "b", parameters={"x": 1}),
        of("a", "b", parameters={"x": "1"}),
    ]
    assert len(set(others)) == len(others)


def test_outputs_and_parameters_order_do_not_matter_to_the_fingerprint():
    shown = prepared(code("a", outputs=[new_output("stream", text="x")]))
    assert saved_run.fingerprint(shown, "k", {"x": 1, "y": 2}) == saved_run.fingerprint(
        prepared("a"), "k", {"y": 2, "x": 1}
    )


# --- When it is gone on with


def begun(*cells, state=None, key="key", digest="digest"):
    notebook = prepared(*(cells or ("a", new_markdown_cell("text"), "b")))
    saved_run.begin(notebook, identity_of(key, "name"), digest)
    if state is not None:
        notebook.metadata["smstudio"]["run"]["state"] = state
    return notebook


@pytest.mark.parametrize("state", ["running", "lost", "completed"])
@pytest.mark.parametrize("resume", ["auto", "failed_cell"])
def test_a_run_that_may_go_on(state, resume):
    saved = begun(state=state)
    assert saved_run.state_of(saved) == state
    assert saved_run.why_not(saved, begun(), resume=resume) is None


def test_a_failed_cell_is_gone_on_from_where_that_is_asked_for():
    saved = begun(state="cell-failed")
    assert saved_run.why_not(saved, begun(), resume="failed_cell") is None
    why = saved_run.why_not(saved, begun(), resume="auto")
    assert why is not None
    assert "resume='failed_cell'" in why


def without_records():
    saved = begun(state="running")
    del saved.cells[1].metadata["papermill"]
    return saved


def without_head():
    saved = begun(state="running")
    del saved.metadata["papermill"]
    return saved


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (begun(state="running", key="other"), "its executed notebook holds another run"),
        (prepared("a"), "its executed notebook holds another run"),
        (begun(state="running", digest="other"), "have changed since"),
        (begun("a", new_markdown_cell("text"), "c", state="running"), "have changed since"),
        (begun("a", "b", state="running"), "have changed since"),
        (begun("a", "text", "b", state="running"), "have changed since"),
        (without_records(), "have changed since"),
        (without_head(), "have changed since"),
        (begun(state="killed"), "it was killed"),
        (begun(state="failed"), "it had failed"),
        (begun(), "its first cell had not been reached"),
        (begun(state=""), "its first cell had not been reached"),
        (begun(state="odd"), "its first cell had not been reached"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "failed_cell"])
def test_why_a_run_is_not_gone_on_with(saved, reason, resume):
    why = saved_run.why_not(saved, begun(), resume=resume)
    assert why is not None
    assert reason in why
    assert saved_run.why_not(saved, begun(), resume="never") == "resume is 'never'"


@pytest.mark.parametrize("own", [None, "x", [], {"run": "x"}, {"run": None}])
def test_odd_metadata_is_no_run(own):
    saved = begun(state="running")
    saved.metadata["smstudio"] = own
    assert saved_run.state_of(saved) == ""
    assert saved_run.why_not(saved, begun(), resume="auto") is not None


# --- Taking over


def test_taking_over_puts_what_was_saved_into_the_notebook():
    saved = begun(state="running")
    saved.metadata["papermill"]["start_time"] = "2026-11-06T07:00:00+00:00"
    saved.metadata["language_info"] = {"name": "python"}
    saved.metadata["widgets"] = {"w": 1}
    saved.metadata["other"] = "not ours"
    first = saved.cells[0]
    first["outputs"], first["execution_count"] = [new_output("stream", text="x")], 4
    first.metadata["papermill"].update(status="completed", duration=1.5)
    first.metadata["smstudio"] = {"msg_id": "m", "attempt": 2}
    first.metadata["execution"] = {"iopub.status.busy": "t"}
    notebook = begun()
    saved_run.take_over(notebook, saved)
    cell = notebook.cells[0]
    assert (cell.outputs[0].text, cell.execution_count) == ("x", 4)
    assert cell.metadata["papermill"]["status"] == "completed"
    assert cell.metadata["smstudio"] == {"msg_id": "m", "attempt": 2}
    assert cell.metadata["execution"] == {"iopub.status.busy": "t"}
    assert notebook.metadata["papermill"]["start_time"] == "2026-11-06T07:00:00+00:00"
    assert notebook.metadata["smstudio"]["run"]["state"] == "running"
    assert (notebook.metadata["language_info"], notebook.metadata["widgets"]) == ({"name": "python"}, {"w": 1})
    assert "other" not in notebook.metadata


@pytest.mark.parametrize(("own", "attempt"), [({"attempt": 3}, 4), ({}, 2), (None, 2), ({"attempt": "x"}, 2)])
def test_a_cell_that_failed_becomes_one_that_has_not_run_under_the_next_number(own, attempt):
    saved = begun(state="cell-failed")
    cell = saved.cells[2]
    cell["outputs"], cell["execution_count"] = [new_output("error", ename="E", evalue="v", traceback=[])], 5
    cell.metadata["papermill"].update(status="failed", exception=True)
    if own is not None:
        cell.metadata["smstudio"] = {**own, "output_lost": ["x"]}
    notebook = begun()
    saved_run.take_over(notebook, deepcopy(saved))
    taken = notebook.cells[2]
    assert (taken.outputs, taken.execution_count) == ([], None)
    assert taken.metadata["papermill"]["status"] == "pending"
    assert taken.metadata["papermill"]["exception"] is None
    assert taken.metadata["smstudio"]["attempt"] == attempt
    assert "output_lost" not in taken.metadata["smstudio"]
