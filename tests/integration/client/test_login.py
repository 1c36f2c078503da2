"""The login against front doors that answer as no local Studio does: a scripted HTTP server on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_provider_smstudio.studio.errors import (
    AppFailedError,
    AppNotReadyError,
    LoginError,
    LoginLinkExpiredError,
    ServerError,
    SessionExpiredError,
    StudioError,
)
from airflow_provider_smstudio.studio.jupyter import websocket
from airflow_provider_smstudio.studio.jupyter.auth import StudioSession
from tests.helpers.bench import Bench
from tests.helpers.scripted_gateway import BASE, Answer, Door, data, html, open_door, to


@pytest.fixture
def door() -> Iterator[Door]:
    yield from open_door()


@pytest.fixture
def elsewhere() -> Iterator[Door]:
    """Another server, which the tests address by another host name."""
    yield from open_door()


@pytest.fixture
def good(door: Door) -> Door:
    """A front door that lets us in."""
    door.answers = {
        "/auth": to(f"{BASE}/lab", {"Set-Cookie": "session=s3cret; HttpOnly; Path=/"}),
        f"{BASE}/lab": html(headers={"Set-Cookie": f"_xsrf=lab-value; Path={BASE}/"}),
        f"{BASE}/api/kernels": data([]),
    }
    return door


def test_cookie_and_xsrf_go_with_requests(good: Door) -> None:
    session = good.session()
    good.answers[f"{BASE}/api/sessions"] = data({}, 201)
    session.request("POST", "api/sessions", json={})
    _, _, headers = good.asked[-1]
    assert headers["x-xsrftoken"] == "lab-value"
    assert "session=s3cret" in headers["cookie"]
    assert session.logins == 1


def test_the_xsrf_cookie_with_the_longest_fitting_path_counts(good: Door) -> None:
    good.answers["/auth"] = to(
        f"{BASE}/lab",
        {"Set-Cookie": "_xsrf=front-door; Path=/\n_xsrf=other-app; Path=/codeeditor/default/\nsession=x; Path=/"},
    )
    session = good.session()
    good.answers[f"{BASE}/api/x"] = data({})
    session.request("PUT", "api/x")
    assert good.asked[-1][2]["x-xsrftoken"] == "lab-value"


def test_an_xsrf_cookie_of_the_front_doors_own_is_not_jupyters(good: Door) -> None:
    good.answers["/auth"] = html("logged in", 200, {"Set-Cookie": "session=s; Path=/\n_xsrf=front-door; Path=/"})
    session = good.session()
    good.answers[f"{BASE}/api/x"] = data({})
    session.request("PUT", "api/x")
    assert good.asked[-1][2]["x-xsrftoken"] == "lab-value"


def test_an_xsrf_cookie_set_by_the_html_page_only(good: Door) -> None:
    good.answers["/auth"] = html("logged in", headers={"Set-Cookie": "session=s; Path=/"})
    good.session().renew()
    assert [path for _, path, _ in good.asked] == ["/auth", f"{BASE}/lab", f"{BASE}/api/kernels"]


def test_an_expired_link_leads_to_another_host_which_never_hears_of_us(good: Door, elsewhere: Door) -> None:
    good.answers["/auth"] = to(f"http://localhost:{elsewhere.port}/signin", {"Set-Cookie": "session=s; Path=/"})
    with pytest.raises(LoginLinkExpiredError, match="did not accept the presigned URL"):
        good.session().renew()
    assert elsewhere.asked == []


def test_a_sign_in_after_the_link_was_accepted_is_something_else(good: Door, elsewhere: Door) -> None:
    good.answers[f"{BASE}/lab"] = to(f"http://localhost:{elsewhere.port}/signin")
    with pytest.raises(LoginError, match="accepted the presigned URL, and then asked to sign in") as caught:
        good.session().renew()
    assert not isinstance(caught.value, LoginLinkExpiredError)
    assert elsewhere.asked == []


def test_a_loading_page_means_not_ready(good: Door) -> None:
    good.answers[f"{BASE}/lab"] = html("<p>Loading</p>")
    with pytest.raises(AppNotReadyError, match="loading page.*SageMakerStudioAppSensor"):
        good.session().renew()


def test_html_instead_of_the_api_means_not_ready(good: Door) -> None:
    good.answers[f"{BASE}/api/kernels"] = html("<p>Loading</p>")
    with pytest.raises(AppNotReadyError, match="does not answer as a Jupyter server yet"):
        good.session().renew()


def test_a_jupyter_server_that_cannot_list_a_kernel_that_starts_is_asked_again(
    good: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    unhandled = data({"message": "Unhandled error", "reason": None, "traceback": ""}, 500)
    good.answers[f"{BASE}/api/kernels"] = [unhandled, unhandled, data([]), unhandled, data([])]
    session = good.session()
    session.renew()
    assert session.request("GET", "api/kernels").json() == []
    assert session.logins == 1


def test_a_jupyter_server_that_never_lists_its_kernels_is_not_ready(
    good: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    good.answers[f"{BASE}/api/kernels"] = data({"message": "Unhandled error"}, 500)
    with pytest.raises(AppNotReadyError, match=r"as a Jupyter server yet \(HTTP 500\)"):
        good.session().renew()


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, LoginLinkExpiredError), (403, LoginLinkExpiredError), (502, AppNotReadyError), (503, AppNotReadyError)],
)
def test_statuses_of_the_link(good: Door, status: int, error: type[StudioError]) -> None:
    good.answers["/auth"] = html(status=status)
    with pytest.raises(error, match=str(status)):
        good.session().renew()


def test_a_circle_of_redirects_ends(good: Door) -> None:
    good.answers[f"{BASE}/lab"] = to(f"{BASE}/lab")
    with pytest.raises(LoginError, match="redirected 10 times without an end"):
        good.session().renew()


def test_nobody_answers() -> None:
    session = StudioSession(lambda: "http://127.0.0.1:9/auth?token=abc", "JupyterLab")
    with pytest.raises(LoginError, match="no answer from Studio at http://127.0.0.1:9: the connection failed"):
        session.renew()


@pytest.mark.parametrize(
    "gone",
    [
        html(status=401),
        html(status=403),
        data({"message": "'_xsrf' argument missing from POST"}, 403),
        to("http://localhost:1/signin"),
        to("/login"),
        html("<p>Sign in</p>"),
    ],
    ids=["401", "403", "403-json", "off-host", "on-host", "200-html"],
)
def test_every_sign_of_an_ended_login_renews_it_once(good: Door, gone: Answer) -> None:
    session = good.session()
    good.answers[f"{BASE}/api/sessions"] = [gone, data({"id": 1}, 201)]
    assert session.request("POST", "api/sessions", json={}).json() == {"id": 1}
    assert session.logins == 2
    assert good.count(f"{BASE}/api/sessions") == 2


def test_a_login_that_does_not_last_is_given_up(good: Door) -> None:
    session = good.session()
    good.answers[f"{BASE}/api/x"] = html(status=403)
    with pytest.raises(SessionExpiredError, match="right after a fresh login.*CreatePresignedDomainUrl"):
        session.request("GET", "api/x")
    assert session.logins == 2


def test_a_403_of_jupyters_own_is_an_answer(good: Door) -> None:
    session = good.session()
    good.answers[f"{BASE}/api/x"] = data({"message": "Permission denied: x"}, 403)
    assert session.request("PUT", "api/x").json()["message"] == "Permission denied: x"


def test_an_error_page_in_html_is_no_ended_login(good: Door) -> None:
    session = good.session()
    good.answers[f"{BASE}/api/x"] = html(status=404)
    assert session.request("GET", "api/x").status_code == 404
    assert session.logins == 1


def test_gateways_errors_are_tried_again_but_posts_are_not(good: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    session = good.session()
    good.answers[f"{BASE}/api/x"] = [html(status=502), html(status=503), data({})]
    assert session.request("PUT", "api/x").status_code == 200
    good.answers[f"{BASE}/api/y"] = [html(status=502), data({})]
    assert session.request("POST", "api/y").status_code == 502
    good.answers[f"{BASE}/api/z"] = [data({}, 500), data({})]
    assert session.request("PUT", "api/z").status_code == 500


def test_a_request_without_an_answer(good: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    session = good.session()
    session.renew()
    session._origin = "http://127.0.0.1:9"
    with pytest.raises(ServerError, match="no answer to GET api/x .*the connection failed"):
        session.request("GET", "api/x")


class TestClassic:
    base = "/jupyter/default"

    @pytest.fixture
    def classic(self, door: Door) -> Door:
        door.answers = {
            "/auth": html("<p>Loading</p>", headers={"Set-Cookie": "session=s; Path=/"}),
            "/app": (200, {"Content-Type": "text/plain"}, "InService"),
            self.base: html(headers={"Set-Cookie": "_xsrf=classic; Path=/"}),
            f"{self.base}/api/kernels": data([]),
        }
        return door

    def test_the_front_door_tells_the_apps_status(self, classic: Door) -> None:
        classic.session("JupyterServer").renew()
        assert [path for _, path, _ in classic.asked] == ["/auth", "/app", self.base, f"{self.base}/api/kernels"]

    @pytest.mark.parametrize("status", ["Pending", "Deleting"])
    def test_starting(self, classic: Door, status: str) -> None:
        classic.answers["/app"] = (200, {}, status)
        with pytest.raises(AppNotReadyError, match=f"is {status}") as caught:
            classic.session("JupyterServer").renew()
        assert caught.value.status == status

    @pytest.mark.parametrize("status", ["Terminated", "Failed", "Deleted"])
    def test_gone(self, classic: Door, status: str) -> None:
        classic.answers["/app"] = (200, {}, status)
        with pytest.raises(AppFailedError, match=f"is {status}"):
            classic.session("JupyterServer").renew()

    def test_a_front_door_without_that_page(self, classic: Door) -> None:
        del classic.answers["/app"]
        classic.session("JupyterServer").renew()


@pytest.mark.parametrize("answer", ["403", "302", "200-html"])
def test_a_login_that_ends_before_the_websocket_is_renewed(
    either: Bench, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handshake: Callable[..., object] = websocket._handshake
    calls: list[int] = []

    def late(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            either.local.expire_logins()
        return handshake(*arguments)

    monkeypatch.setattr(websocket, "_handshake", late)
    either.local.switches.unauthenticated = answer
    try:
        result = either.run(either.write("print('in')"))
    finally:
        either.local.switches.unauthenticated = "403"
    assert len(calls) == 2
    assert either.executed(result.output_path).cells[0].outputs[0]["text"] == "in\n"
    either.assert_clean()
