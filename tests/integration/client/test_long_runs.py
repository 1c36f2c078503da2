"""Runs that outlive a login, and silent cells that outlive Studio's patience."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import StudioError
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.runs import spec
from airflow_provider_smstudio.studio.runs.log import RunLog
from tests.helpers.bench import Bench, client_of

SILENT = "import time\ntime.sleep(9)\nprint('done')"


@pytest.fixture
def idle_space() -> Iterator[Bench]:
    """A space whose app is shut down after four idle seconds."""
    with LocalStudio(idle_timeout=4.0) as local:
        studio = client_of(local)
        yield Bench(local, studio, "work")
        studio.close()


def beat_each(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(**given: object) -> RunOptions:
        return replace(RunOptions(heartbeat_interval=seconds), **given)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(spec, "RunOptions", options)


def test_a_silent_cell_keeps_its_app_by_the_heartbeat(idle_space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    beat_each(1.0, monkeypatch)
    idle_space.run(idle_space.write(SILENT))
    assert idle_space.executed().cells[0].outputs[0]["text"] == "done\n"
    assert idle_space.local.app_status == "InService"


def test_without_the_heartbeat_the_app_is_shut_down(idle_space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    beat_each(10**6, monkeypatch)
    with pytest.raises(StudioError):
        idle_space.run(idle_space.write(SILENT), reconnect_timeout=2)
    assert idle_space.local.app_status != "InService"


@pytest.mark.parametrize("answer", ["403", "302", "200-html"])
def test_a_run_longer_than_its_login(either: Bench, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    local = either.local
    local.switches.unauthenticated = answer
    local.switches.cut_websockets_at_expiry = True
    local.switches.login_seconds = 3.0
    lines: list[str] = []
    live = RunLog(lambda level, line: lines.append(line))
    spec = RunSpec(either.write("import time\nfor i in range(50):\n    print(i, flush=True)\n    time.sleep(0.1)"))
    try:
        with caplog.at_level(logging.INFO):
            either.studio.runner(spec, listener=live).run()
    finally:
        local.switches.login_seconds = None
        local.switches.unauthenticated = "403"
        local.switches.cut_websockets_at_expiry = False
    text = "".join(output["text"] for output in either.executed().cells[0].outputs)
    assert text == "".join(f"{i}\n" for i in range(50))
    said = "\n".join([*lines, *(record.getMessage() for record in caplog.records)])
    assert "the Studio login has ended" in said
    assert 1 <= said.count("the Studio login has ended") <= either.studio.session.logins
    assert not [secret for secret in local.secrets() if secret in said]
    either.assert_clean()
