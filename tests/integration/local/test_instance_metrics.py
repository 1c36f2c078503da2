"""What a space tells of its instance."""

from __future__ import annotations

import os

import psutil
import pytest
import requests

from airflow_provider_smstudio.local import LocalStudio
from tests.helpers.browser import Browser

PATH = "aws/sagemaker/api/instance/metrics"


def test_this_machines_numbers(browser: Browser) -> None:
    metrics = browser.get(PATH)["metrics"]
    memory, cpu, storage = metrics["memory"], metrics["cpu"], metrics["storage"]
    assert memory["total_in_bytes"] == psutil.virtual_memory().total
    assert 0 < memory["rss_in_bytes"] < memory["total_in_bytes"]
    assert 0 < memory["memory_percentage"] <= 100
    assert cpu["cpu_count"] == os.cpu_count()
    assert 0 <= cpu["cpu_percentage"] <= 100
    assert 0 < storage["used_space_in_bytes"] <= storage["total_space_in_bytes"]
    assert 0 <= storage["free_space_in_bytes"] <= storage["total_space_in_bytes"]


@pytest.mark.parametrize("percent", [0, 97.5, 100])
def test_its_memory_may_be_as_full_as_one_wants(spaces: LocalStudio, browser: Browser, percent: float) -> None:
    spaces.switches.memory_percent = percent
    memory = browser.get(PATH)["metrics"]["memory"]
    assert memory["memory_percentage"] == percent
    assert memory["rss_in_bytes"] == int(memory["total_in_bytes"] * percent / 100)


def test_it_may_be_absent(spaces: LocalStudio, browser: Browser) -> None:
    spaces.switches.instance_metrics = False
    assert browser.call("GET", PATH).status_code == 404


def test_only_those_who_are_logged_in_are_told(spaces: LocalStudio) -> None:
    assert requests.get(f"{spaces.door_url}/jupyterlab/default/{PATH}", timeout=60).status_code == 403


def test_an_app_that_does_not_run_tells_nothing(spaces: LocalStudio, browser: Browser) -> None:
    spaces.stop_app()
    assert "Loading" in browser.call("GET", PATH).text


def test_classic_has_none(classic: LocalStudio) -> None:
    with Browser(classic) as user:
        assert user.call("GET", PATH).status_code == 404
