"""Sessions of the type that was used before are known as well: by their paths."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio import RunSpec
from tests.helpers.bench import Bench


@pytest.mark.parametrize("kind", ["notebook", "console"])
def test_the_clean_up_and_a_later_try_know_them(space: Bench, kind: str) -> None:
    server = space.studio.server
    spec = RunSpec(space.write("print(1)"), run_key=space.folder)
    runner = space.studio.runner(spec)
    body = {"path": runner._session_path, "name": "run", "type": kind, "kernel": {"name": "python3"}}
    made = server._call("POST", "api/sessions", json=body, ok=(201,)).json()
    assert made["type"] == kind
    (found,) = space.studio.remove_abandoned_runs(1e-9, dry_run=True)
    assert found.kernel_id == made["kernel"]["id"]
    assert runner.run().status == "success"  # which removes what cannot be gone on with
    space.assert_clean()
    server._call("POST", "api/sessions", json=body, ok=(201,))
    space.studio.remove_abandoned_runs(1e-9)
    space.assert_clean()


def test_a_run_in_a_space_is_no_document(space: Bench) -> None:
    """A session of type `notebook` is waited for as a document by jupyter_server_documents 0.2."""
    seen: list[str] = []
    space.studio.runner(
        RunSpec(space.write("print(1)")),
        listener=lambda event: seen.extend(item["type"] for item in space.local.sessions()),
    ).run()
    assert set(seen) == {"console"}
