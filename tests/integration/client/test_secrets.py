"""No presigned URL, cookie or XSRF value shows up anywhere: logs, errors, reprs, notebooks."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import traceback
from collections.abc import Iterator

import pytest

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.studio import RunSpec
from airflow_provider_smstudio.studio.errors import StudioError
from tests.helpers.bench import Bench


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All that any library logs, at debug level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def assert_no_secret(local: LocalStudio, *texts: str) -> None:
    secrets = local.secrets()
    assert len(secrets) > 3
    for text in texts:
        found = [secret[:6] for secret in secrets if secret in text]
        assert found == []


def test_debug_logs_reprs_and_notebooks(either: Bench, everything_logged: io.StringIO) -> None:
    told: list[str] = []
    either.studio.session._on_secret = told.append
    path = either.write("print('work')", "import os; print(dict(os.environ))")
    result = either.run(path)
    either.local.expire_logins()
    either.studio.server.kernels()
    log = everything_logged.getvalue()
    assert "GET /auth?token=***" in log  # the libraries did log, and were redacted
    notebook = (either.local.home / result.output_path).read_text()
    reprs = repr([either.studio, either.studio.session, either.studio.server, either.studio.control_plane, result])
    assert_no_secret(either.local, log, notebook, reprs, repr(either.events))
    tokens = [secret for secret in either.local.secrets() if len(secret) > 1000]
    assert any(token in told for token in tokens)  # so that Airflow can mask it as well


@pytest.mark.parametrize("break_it", ["refused", "expired", "unauthorised", "sign-in"])
def test_errors(either: Bench, everything_logged: io.StringIO, break_it: str) -> None:
    plane = either.studio.control_plane
    url = plane.presigned_url()
    door = either.local.door_url
    urls = {
        "refused": url.replace(door, "http://127.0.0.1:9"),
        "expired": url[:-10] + "0123456789",
        "unauthorised": url,
        "sign-in": url,
    }
    plane.presigned_url = lambda session_seconds=0: urls[break_it]  # type: ignore[method-assign]
    either.local.switches.unauthenticated = "302" if break_it == "sign-in" else "403"
    try:
        if break_it in ("unauthorised", "sign-in"):
            either.studio.session.renew()
            either.local.expire_logins()
            either.local.switches.single_use_tokens = True
        with pytest.raises(StudioError) as caught:
            either.studio.runner(RunSpec(either.write("1"))).run()
    finally:
        either.local.switches.unauthenticated = "403"
        either.local.switches.single_use_tokens = False
    error = caught.value
    shown = "".join(traceback.format_exception(error))
    pickled = pickle.loads(pickle.dumps(error))
    assert_no_secret(
        either.local, str(error), repr(error), shown, repr(vars(pickled)), everything_logged.getvalue()
    )


def test_websocket_errors(space: Bench, everything_logged: io.StringIO) -> None:
    from airflow_provider_smstudio.studio.jupyter.websocket import connect

    error: StudioError | None = None
    with contextlib.suppress(StudioError):
        try:
            connect(space.studio.session, "00000000-0000-0000-0000-000000000000", "s", timeout=5)
        except StudioError as caught:
            error = caught
            raise
    assert error is not None
    shown = "".join(traceback.format_exception(error))
    assert_no_secret(space.local, str(error), shown, everything_logged.getvalue())
