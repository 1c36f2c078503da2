"""A notebook whose server notes no activity is shown to Studio's idle shutdown by a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_smstudio.studio.errors import ServerError
from airflow_provider_smstudio.studio.jupyter import idle_shutdown
from tests.helpers.bench import Bench, both_ways

FROZEN = {"last_activity": "2026-11-27T14:18:14.673250Z"}
SLEEPS = "import time\nfor _ in range(25): time.sleep(0.1)"


def freeze(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    """Let a kernel's activity never move, as jupyter_server_documents 0.2.0 does; look often."""
    server = bench.studio.server
    kernel = server.kernel

    def frozen(*args: Any, **about: Any) -> dict[str, Any] | None:
        found = kernel(*args, **about)
        return found if found is None else {**found, **FROZEN}

    patch.setattr(server, "kernel", frozen)
    patch.setattr(idle_shutdown, "INTERVAL", 0.3)


def test_it_is_shown_by_a_terminal_that_is_closed_again(
    space: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    freeze(space, monkeypatch)
    server = space.studio.server
    before = server.idle_since()
    made: list[str] = []
    make = server.make_terminal
    monkeypatch.setattr(server, "make_terminal", lambda: made.append(make()) or made[-1])  # type: ignore[func-returns-value]
    assert space.run(space.write(SLEEPS)).status == "success"
    assert made
    assert server._call("GET", "api/terminals").json() == []
    after = server.idle_since()
    assert before is not None
    assert after is not None
    assert after > before
    told = [line for line in caplog.messages if "has noted no activity of this notebook" in line]
    assert len(told) == 1
    assert "a terminal is opened for a moment" in told[0]
    space.assert_clean()


def test_where_it_cannot_be_shown_the_log_says_so_once(
    space: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    freeze(space, monkeypatch)

    def refuse() -> str:
        raise ServerError("no terminals here", status=404)

    monkeypatch.setattr(space.studio.server, "make_terminal", refuse)
    assert space.run(space.write(SLEEPS)).status == "success"
    told = [record for record in caplog.records if "The idle shutdown may stop the app" in record.message]
    assert [record.levelname for record in told] == ["WARNING"]
    assert "no terminals here" in told[0].message


@both_ways
def test_a_server_that_notes_activity_is_left_alone(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_shutdown, "INTERVAL", 0.5)
    made: list[str] = []
    monkeypatch.setattr(space.studio.server, "make_terminal", lambda: made.append("one") or "one")  # type: ignore[func-returns-value]
    assert space.run(space.write("import time\nfor i in range(25): print(i); time.sleep(0.1)")).status == "success"
    assert made == []
