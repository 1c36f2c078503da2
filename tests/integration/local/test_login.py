"""The login chain and what a client without a valid login meets."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
import requests
from websocket import WebSocketBadStatusException, WebSocketException

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.browser import Browser, presign


def test_link_leads_to_cookies_and_the_lab(spaces: LocalStudio) -> None:
    issued = spaces.presigned_urls_issued
    url = presign(spaces)
    assert spaces.presigned_urls_issued == issued + 1
    assert 3500 < len(url) < 5500
    with requests.Session() as http:
        redirect = http.get(url, allow_redirects=False)
        assert redirect.status_code == 302
        assert redirect.headers["Location"] == "/jupyterlab/default/lab"
        raw = redirect.raw.headers.getlist("Set-Cookie")
        assert "HttpOnly" in raw[0]
        assert not any("Secure" in cookie for cookie in raw)
        assert http.cookies["authMode"] == "Iam"
        assert http.cookies["studioUserProfileName"] == "demo-user"
        assert int(http.cookies["expiryTime"] or 0) / 1000 - time.time() == pytest.approx(43200, abs=5)
        page = http.get(url)
        assert page.status_code == 200
        cookie = next(cookie for cookie in http.cookies if cookie.name == "_xsrf")
        assert cookie.path == "/jupyterlab/default/"
        for secret in (url.partition("token=")[2], http.cookies["StudioSessionToken"], cookie.value):
            assert secret in spaces.secrets()


def test_session_length_is_the_callers(spaces: LocalStudio) -> None:
    with requests.Session() as http:
        http.get(presign(spaces, SessionExpirationDurationInSeconds=1800))
        assert int(http.cookies["expiryTime"] or 0) / 1000 - time.time() == pytest.approx(1800, abs=5)


def test_deep_link(spaces: LocalStudio) -> None:
    (spaces.home / "deep.txt").write_text("deep")
    url = presign(spaces, LandingUri="app:JupyterLab:files/deep.txt?x=1")
    with requests.Session() as http:
        landed = http.get(url)
        assert landed.text == "deep"
        assert landed.url.endswith("/jupyterlab/default/files/deep.txt?x=1")


def test_studio_web_ui_is_of_no_use_to_a_program(spaces: LocalStudio) -> None:
    url = spaces.client().create_presigned_domain_url(
        DomainId=spaces.domain_id, UserProfileName=spaces.user_profile_name
    )["AuthorizedUrl"]
    assert urlsplit(url).netloc != urlsplit(spaces.door_url).netloc
    with requests.Session() as http:
        assert "SageMaker Studio" in http.get(url).text
        # Its login is not one for the space.
        assert http.get(f"{spaces.door_url}/jupyterlab/default/api/kernels").status_code == 403


def assert_signed_out(answer: requests.Response, spaces: LocalStudio) -> None:
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Sign in" in answer.text
    assert urlsplit(answer.url).hostname == "localhost" != urlsplit(spaces.door_url).hostname


def test_expired_and_unknown_links_lead_to_the_console(spaces: LocalStudio) -> None:
    spaces.switches.link_seconds = 0.05
    url = presign(spaces)
    time.sleep(0.1)
    with requests.Session() as http:
        assert_signed_out(http.get(url), spaces)
        assert_signed_out(http.get(f"{spaces.door_url}/auth?token=made.up.token"), spaces)
        assert_signed_out(http.get(f"{spaces.door_url}/auth"), spaces)
        assert "StudioSessionToken" not in http.cookies


def test_links_are_reusable_unless_switched(spaces: LocalStudio) -> None:
    url = presign(spaces)
    with requests.Session() as first, requests.Session() as second, requests.Session() as third:
        assert first.get(url).url.endswith("/lab")
        assert second.get(url).url.endswith("/lab")
        spaces.switches.single_use_tokens = True
        assert_signed_out(third.get(url), spaces)
        fresh = presign(spaces)
        assert third.get(fresh).url.endswith("/lab")
        assert_signed_out(third.get(fresh), spaces)


@pytest.mark.parametrize("how", ["403", "302", "200-html"])
def test_requests_without_a_login(spaces: LocalStudio, how: str) -> None:
    spaces.switches.unauthenticated = how
    with Browser(spaces, login=False) as stranger:
        answer = stranger.call("GET", "api/kernels", allow_redirects=False)
        assert answer.status_code == int(how[:3])
        assert answer.headers["Content-Type"].startswith("text/html")
        posted = stranger.call("POST", "api/kernels", json={"name": "python3"}, allow_redirects=False)
        assert posted.status_code == int(how[:3])
        # Also to a client that is still sending.
        big = stranger.call("PUT", "api/contents/big.txt", data=b"x" * 20_000_000, allow_redirects=False)
        assert big.status_code == int(how[:3])
        if how == "302":
            assert_signed_out(stranger.call("GET", "api/kernels"), spaces)
        # websocket-client follows redirects itself, and chokes on a page for people: how, depends on its version.
        with pytest.raises((WebSocketException, ValueError)) as refused:
            stranger.channels("00000000-0000-0000-0000-000000000000").socket.close()
        if how != "302":
            assert isinstance(refused.value, WebSocketBadStatusException)
            assert refused.value.status_code == int(how[:3])


def test_expire_logins(spaces: LocalStudio, browser: Browser) -> None:
    assert browser.get("api/kernels") == []
    spaces.expire_logins()
    assert browser.call("GET", "api/kernels").status_code == 403
    browser.http.get(presign(spaces))
    assert browser.get("api/kernels") == []


def test_logins_end_by_themselves(spaces: LocalStudio) -> None:
    spaces.switches.login_seconds = 0.4
    with Browser(spaces) as short:
        assert short.get("api/kernels") == []
        time.sleep(0.5)
        assert short.call("GET", "api/kernels").status_code == 403


def test_logout(spaces: LocalStudio, browser: Browser) -> None:
    assert browser.call("GET", "logout").status_code == 200
    assert browser.call("GET", "api/kernels").status_code == 403


def test_open_websockets_at_the_end_of_the_login(spaces: LocalStudio, browser: Browser, kernel_id: str) -> None:
    with browser.channels(kernel_id) as channels:
        spaces.expire_logins()
        assert channels.run("print('still here')") == "still here\n"
    browser.http.get(presign(spaces))
    spaces.switches.cut_websockets_at_expiry = True
    with browser.channels(kernel_id) as channels:
        spaces.expire_logins()
        with pytest.raises(ConnectionError):
            channels.run("print('cut')")
    spaces.switches.login_seconds = 1.0
    browser.http.get(presign(spaces))
    with browser.channels(kernel_id) as channels, pytest.raises(ConnectionError):
        channels.run("import time; time.sleep(20)")


def test_loading_page_has_no_xsrf(spaces: LocalStudio) -> None:
    spaces.stop_app()
    with Browser(spaces) as early:
        assert early.landing is not None
        assert early.landing.status_code == 200
        assert early.landing.headers["Content-Type"].startswith("text/html")
        assert early.xsrf == ""
        assert early.call("GET", "api/status").text == early.landing.text
        # Whether a space's host has this page is unknown.
        page = f"{spaces.door_url}/app?appType=JupyterLab&appName=default"
        assert early.http.get(page).status_code == 404
        spaces.switches.app_status_page = True
        assert early.http.get(page).text == "Terminated"
        spaces.start_app()
        assert early.http.get(page).text == "InService"
        early.call("GET", "lab")
        assert early.xsrf
        assert early.get("api/kernels") == []


def test_stopped_space_may_look_like_an_expired_link() -> None:
    with LocalStudio(app_status="Stopped", stopped_app="sign-in") as studio, Browser(studio) as early:
        assert early.landing is not None
        assert_signed_out(early.landing, studio)


def test_xsrf_rule_of_the_real_server(browser: Browser) -> None:
    answer = browser.http.post(f"{browser.base}/api/kernels", json={"name": "python3"}, timeout=10)
    assert answer.status_code == 403
    assert answer.json()["message"] == "'_xsrf' argument missing from POST"


def test_idle_endpoint_of_the_images(browser: Browser) -> None:
    assert "lastActiveTimestamp" in browser.get("api/idle")


def test_paths_outside_the_app(spaces: LocalStudio, browser: Browser) -> None:
    assert browser.http.get(f"{spaces.door_url}/").status_code == 404
    assert browser.http.get(f"{spaces.door_url}/jupyterlab/defaults").status_code == 404
