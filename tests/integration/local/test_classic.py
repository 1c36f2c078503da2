"""Studio Classic: the flow of 2021 in our own words, and what its server had beyond a stock one."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
import requests
from websocket import WebSocketException

from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.local.server.classic_images import CLASSIC_IMAGES
from tests.helpers.browser import V1, Browser, presign

NAME = CLASSIC_IMAGES[0].kernel_name("us-east-1")
PYTORCH = CLASSIC_IMAGES[1].kernel_name("us-east-1")
BODY = {"name": NAME, "instance_type": "ml.t3.medium", "path": "HelloWorld.ipynb"}


@pytest.fixture
def user(classic: LocalStudio) -> Iterator[Browser]:
    with Browser(classic) as logged_in:
        yield logged_in
        for kernel in logged_in.get("api/kernels"):
            logged_in.call("DELETE", f"api/kernels/{kernel['id']}")
        for app in logged_in.get("sagemaker/api/apps"):
            logged_in.call("DELETE", f"sagemaker/api/apps/{app['app_name']}")


def test_from_login_to_no_apps(classic: LocalStudio, user: Browser) -> None:
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": NAME, "display_name": "Python 3 (Data Science)", "language": "python"}
        },
        "cells": [
            {
                "cell_type": "code",
                "id": "a",
                "metadata": {},
                "outputs": [],
                "execution_count": None,
                "source": source,
            }
            for source in ("x = 20", "print(x + 1)", "y = x")
        ],
    }
    (classic.home / "HelloWorld.ipynb").write_text(json.dumps(notebook))
    assert user.landing is not None
    assert user.landing.status_code == 200
    assert [cookie.path for cookie in user.http.cookies if cookie.name == "_xsrf"] == ["/"]
    listed = {entry["path"]: entry["type"] for entry in user.get("api/contents")["content"]}
    assert listed["HelloWorld.ipynb"] == "notebook"
    content = user.get("api/contents/HelloWorld.ipynb")["content"]
    name = content["metadata"]["kernelspec"]["name"]
    assert name in user.get("api/kernelspecs")["kernelspecs"]
    assert user.get("api/kernels") == []

    # The XSRF value also counts as a query argument.
    answer = user.http.post(f"{user.base}/api/kernels", json=BODY, params={"_xsrf": user.xsrf}, timeout=30)
    assert answer.status_code == 201
    kernel = answer.json()
    assert re.fullmatch(r"datascience-1-0-ml-t3-medium-[0-9a-f]{28}", kernel["app_name"])
    assert (kernel["instance_type"], kernel["execution_state"], kernel["connections"]) == (
        "ml.t3.medium",
        "starting",
        0,
    )
    session = user.post(
        "api/sessions",
        {"kernel": {"id": kernel["id"]}, "path": f"n-{uuid.uuid4()}.ipynb", "name": "n", "type": "pending"},
    )
    assert session["kernel"]["app_name"] == kernel["app_name"]
    assert (len(classic.kernels()), len(classic.sessions())) == (1, 1)

    with user.channels(kernel["id"], session_id=session["id"]) as channels:
        cells = [channels.execute(cell["source"]) for cell in content["cells"]]
        pending, printed = set(cells), []
        while pending:
            message = channels.receive()
            parent = message["parent_header"].get("msg_id")
            # As in 2021: what is not about a cell names no request at all.
            assert parent is None or parent in cells
            if message["msg_type"] == "stream":
                printed.append((cells.index(parent), message["content"]["text"]))
            if message["msg_type"] == "execute_reply":
                assert message["content"]["status"] == "ok"
                pending.discard(parent)
        assert printed == [(1, "21\n")]
    model = user.get(f"api/sessions/{session['id']}")["kernel"]
    assert (model["execution_state"], model["connections"]) == ("starting", 0)

    assert user.call("DELETE", f"api/sessions/{session['id']}").status_code == 204
    assert user.get("api/kernels") == []
    again = user.post("api/kernels", BODY)
    assert again["app_name"] == kernel["app_name"]
    assert user.call("DELETE", f"api/kernels/{again['id']}").status_code == 204
    apps = user.get("sagemaker/api/apps")
    assert [app["app_name"] for app in apps] == [kernel["app_name"]]
    assert {"environment_arn", "instance_type"} <= apps[0].keys()
    assert user.call("DELETE", f"sagemaker/api/apps/{kernel['app_name']}").status_code == 204
    assert user.get("sagemaker/api/apps") == []


def test_kernelspecs_as_seen(user: Browser) -> None:
    specs = user.get("api/kernelspecs")
    assert specs["default"] == NAME
    assert len(specs["kernelspecs"]) == len(CLASSIC_IMAGES)
    spec = specs["kernelspecs"][NAME]
    assert spec["name"] == NAME
    assert spec["resources"]["logo-64x64"] == "/kernelspecs/python3/logo-64x64.png"
    assert spec["spec"]["argv"] == ["python3", "-m", "IPython.kernel", "-f", "{connection_file}"]
    assert spec["spec"]["display_name"] == "Python 3 (Data Science)"
    assert spec["spec"]["metadata"] == {
        "sme_metadata": {
            "environment_arn": "arn:aws:sagemaker:us-east-1:081325390199:image/datascience-1.0",
            "display_name": "Data Science",
            "description": "Anaconda Individual Edition https://www.anaconda.com/distribution/",
            "gpu_optimized": False,
            "is_template": True,
        },
        "instance_type": "ml.t3.medium",
    }
    custom = "python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:us-east-1:123456789012:image-version/team-image/3"
    assert custom in specs["kernelspecs"]
    assert user.get(f"api/kernelspecs/{quote(custom, safe='')}")["name"] == custom


def test_kernels_share_apps(classic: LocalStudio, user: Browser) -> None:
    one = user.post("api/kernels", BODY)
    two = user.post("api/kernels", BODY)
    bigger = user.post("api/kernels", {**BODY, "instance_type": "ml.m5.large"})
    default = user.post("api/kernels", {"name": PYTORCH})
    asked = {"path": "s.ipynb", "name": "s", "type": "notebook"}
    in_session = user.post("api/sessions", {**asked, "kernel": {"name": NAME}})["kernel"]
    assert one["app_name"] == two["app_name"] == in_session["app_name"]
    assert len({one["app_name"], bigger["app_name"], default["app_name"]}) == 3
    assert default["instance_type"] == "ml.g4dn.xlarge"
    pages = classic.client().get_paginator("list_apps").paginate()  # other tests' apps stay listed
    listed = [app for page in pages for app in page["Apps"] if app["AppType"] == "KernelGateway"]
    assert {app["AppName"] for app in listed if app["Status"] == "InService"} == {
        one["app_name"],
        bigger["app_name"],
        default["app_name"],
    }

    # Deleting an app ends its kernels and no others.
    assert user.call("DELETE", f"sagemaker/api/apps/{one['app_name']}").status_code == 204
    assert {kernel["id"] for kernel in user.get("api/kernels")} == {bigger["id"], default["id"]}
    assert user.get("api/sessions") == []
    assert user.call("DELETE", f"sagemaker/api/apps/{one['app_name']}").status_code == 404
    new = user.post("api/kernels", BODY)
    assert new["app_name"] != one["app_name"]


def test_control_plane_sees_and_deletes_kernel_apps(classic: LocalStudio, user: Browser) -> None:
    name = user.post("api/kernels", BODY)["app_name"]
    app = {
        "DomainId": classic.domain_id,
        "UserProfileName": classic.user_profile_name,
        "AppType": "KernelGateway",
        "AppName": name,
    }
    client = classic.client()
    described = client.describe_app(**app)
    assert described["Status"] == "InService"
    assert described["ResourceSpec"]["InstanceType"] == "ml.t3.medium"
    client.delete_app(**app)
    assert client.describe_app(**app)["Status"] == "Deleted"
    assert user.get("api/kernels") == []


def test_new_kernel_blocks_until_its_app_is_in_service(classic: LocalStudio, user: Browser) -> None:
    classic.switches.kernel_app_delay = 1.0
    with ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        both = [pool.submit(user.post, "api/kernels", BODY) for _ in range(2)]
        time.sleep(0.5)
        assert [a["Status"] for a in classic.apps() if a["Status"] == "Pending"] == ["Pending"]
        models: list[dict[str, Any]] = [future.result() for future in both]
    assert time.monotonic() - started >= 1.0
    assert models[0]["app_name"] == models[1]["app_name"]
    started = time.monotonic()
    user.post("api/kernels", BODY)
    assert time.monotonic() - started < 0.9


def test_deleted_apps_may_linger(classic: LocalStudio, user: Browser) -> None:
    name = user.post("api/kernels", BODY)["app_name"]
    classic.switches.app_delete_delay = 0.6
    user.call("DELETE", f"sagemaker/api/apps/{name}")
    assert [(app["app_name"], app["status"]) for app in user.get("sagemaker/api/apps")] == [(name, "Deleting")]
    time.sleep(0.8)
    assert user.get("sagemaker/api/apps") == []


def test_unknown_names(user: Browser) -> None:
    assert user.call("POST", "api/kernels", json={"name": "python3"}).status_code >= 500
    assert user.call("GET", f"api/kernels/{uuid.uuid4()}").status_code == 404
    assert user.get("sagemaker/api/apps") == []


def test_websocket_speaks_json_only(classic: LocalStudio, user: Browser) -> None:
    kernel = user.post("api/kernels", BODY)["id"]
    with user.channels(kernel, v1=True) as channels:
        assert "sec-websocket-protocol" not in (channels.socket.getheaders() or {})
        channels.v1 = False
        assert channels.run("print('json')") == "json\n"
    classic.switches.classic_v1_websocket = True
    with user.channels(kernel, v1=True) as channels:
        assert (channels.socket.getheaders() or {})["sec-websocket-protocol"] == V1
        while (greeting := channels.receive())["msg_type"] != "status":
            pass
        assert greeting["parent_header"] == {}
        assert channels.run("print('v1')") == "v1\n"


def test_greeting_with_parents_may_be_switched_on(classic: LocalStudio, user: Browser) -> None:
    classic.switches.classic_bare_nudges = False
    kernel = user.post("api/kernels", BODY)["id"]
    with user.channels(kernel) as channels:
        while (greeting := channels.receive())["msg_type"] != "status":
            pass
        assert greeting["parent_header"]["msg_type"] == "kernel_info_request"


def test_no_space_in_a_classic_domain(classic: LocalStudio) -> None:
    client = classic.client()
    assert client.list_spaces()["Spaces"] == []
    with pytest.raises(client.exceptions.ResourceNotFound):
        presign(classic, SpaceName="demo-space")
    assert (
        client.describe_domain(DomainId=classic.domain_id)["DefaultUserSettings"]["StudioWebPortal"] == "DISABLED"
    )


def test_a_login_starts_the_stopped_server() -> None:
    with LocalStudio("classic", app_status="Stopped", app_start_delay=0.5) as studio:
        page = f"{studio.door_url}/app?appType=JupyterServer&appName=default"
        with Browser(studio) as user:
            assert user.landing is not None
            assert user.landing.status_code == 200
            assert user.xsrf == ""
            status = user.http.get(page, timeout=10)
            assert status.headers["Content-Type"].startswith("text/plain")
            assert status.text == "Pending"
            deadline = time.monotonic() + 20
            while user.http.get(page, timeout=10).text != "InService":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert user.http.get(user.base, timeout=10).status_code == 200
            assert user.xsrf
            assert user.get("api/kernels") == []
            other = f"{studio.door_url}/app?appType=JupyterServer&appName=other"
            assert user.http.get(other, timeout=10).text == "Terminated"
        assert requests.get(page, timeout=10).status_code == 403


def test_strict_websocket_clients_refuse_a_missing_subprotocol(user: Browser) -> None:
    """What the released websocket-client does when it asks for v1 by name, as on the real old server."""
    import websocket

    kernel = user.post("api/kernels", BODY)["id"]
    url = f"{user.base.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?session_id=s"
    with pytest.raises(WebSocketException):
        websocket.create_connection(url, cookie=user.cookies, subprotocols=[V1], timeout=30).close()
