"""The URI of a notebook, as a DAG writes it and as this Airflow keeps it (any warning is an error here)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_smstudio import assets
from airflow_provider_smstudio.assets import convert_asset_to_openlineage, notebook_uri
from airflow_provider_smstudio.studio.errors import InvalidInputError
from tests.helpers.quiet_parts import Asset

HOME = "sagemaker-studio://d-abc123/space/Reports-1"
AWKWARD = "a b/100%?#&=@:;~+[]räumlich/日本.ipynb"


def uri(path: str, **where: Any) -> str:
    return notebook_uri(path, **{"domain_id": "d-abc123", "space_name": "Reports-1", **where})


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("daily.ipynb", "daily.ipynb"),
        ("/out//./x_y-1.2~3.ipynb", "out/x_y-1.2~3.ipynb"),
        (
            AWKWARD,
            "a%20b/100%25%3F%23%26%3D%40%3A%3B~%2B%5B%5Dr%C3%A4umlich/%E6%97%A5%E6%9C%AC.ipynb",
        ),
        ("already%20encoded.ipynb", "already%2520encoded.ipynb"),
        ("{once}.ipynb", "%7Bonce%7D.ipynb"),
    ],
)
def test_airflow_keeps_the_uri_as_it_is(path: str, written: str) -> None:
    assert uri(path) == f"{HOME}/{written}"
    asset = Asset(uri(path))
    assert asset.uri == uri(path)
    assert asset.normalized_uri == uri(path)


def test_classic_has_the_home_of_its_user() -> None:
    classic = uri("daily.ipynb", space_name=None, user_profile_name="Reports-1")
    assert classic == "sagemaker-studio://d-abc123/user-profile/Reports-1/daily.ipynb"
    assert Asset(classic).uri == classic != uri("daily.ipynb")


@pytest.mark.parametrize(
    ("path", "where", "message"),
    [
        ("x.ipynb", {"space_name": None}, "needs space_name, or user_profile_name"),
        ("x.ipynb", {"user_profile_name": "ana"}, "and not both"),
        ("x.ipynb", {"domain_id": ""}, "domain_id '' is not valid"),
        ("x.ipynb", {"domain_id": "{{ var.value.domain }}"}, "domain_id .* must be a fixed name"),
        ("x.ipynb", {"space_name": "a/b"}, "space_name 'a/b' is not valid"),
        ("x.ipynb", {"space_name": None, "user_profile_name": "a b"}, "user_profile_name 'a b' is not valid"),
        ("out/{{ ds }}.ipynb", {}, "is a template, and assets are not templated.*AssetAlias"),
        ("../x.ipynb", {}, r"must be a path below the Studio home"),
        ("", {}, r"must be a path below the Studio home"),
    ],
)
def test_what_cannot_be_is_refused_in_the_dag_file(path: str, where: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        uri(path, **where)


def test_the_longest_uri() -> None:
    room = 1500 - len(HOME) - 1
    assert Asset(uri("x" * room)).uri == f"{HOME}/{'x' * room}"
    with pytest.raises(InvalidInputError, match="has 1501 characters.*Airflow accepts 1500"):
        uri("x" * (room + 1))


@pytest.mark.parametrize(
    ("by_hand", "kept"),
    [
        ("SageMaker-Studio://d-abc123/space/s/a%2db/%c3%a4.ipynb/", "a-b/%C3%A4.ipynb"),
        ("sagemaker-studio://d-abc123/space/s//./x y.ipynb#top", "x%20y.ipynb"),
    ],
)
def test_a_uri_written_by_hand_gets_the_same_form(by_hand: str, kept: str) -> None:
    assert Asset(by_hand).uri == f"sagemaker-studio://d-abc123/space/s/{kept}"


@pytest.mark.parametrize(
    "wrong",
    [
        "sagemaker-studio://d-abc123/reports/daily.ipynb",
        "sagemaker-studio://d-abc123/space/reports",
        "sagemaker-studio://d-abc123/space/a/../b.ipynb",
        "sagemaker-studio:///space/reports/daily.ipynb",
        "sagemaker-studio://D-ABC/space/reports/daily.ipynb",
        "sagemaker-studio://d-abc123/space/reports/daily.ipynb?v=1",
        "sagemaker-studio://d-abc123/space/reports/%ff.ipynb",
    ],
)
def test_airflow_refuses_what_is_no_notebooks_uri(wrong: str) -> None:
    # 2.11 only warns, which is an error in these tests.
    with pytest.raises((ValueError, UserWarning)) as raised:
        Asset(wrong)
    assert (
        "sagemaker-studio://" in str(raised.value)
        or "below the Studio home" in str(raised.value)
        or "utf-8" in str(raised.value)
    )


def test_openlineage_names_the_same_thing() -> None:
    found = convert_asset_to_openlineage(Asset(uri(AWKWARD)), None)
    assert found.namespace == "sagemaker-studio://d-abc123"
    assert f"{found.namespace}/{found.name}" == uri(AWKWARD)


def test_a_dag_file_needs_neither_airflow_nor_nbformat_for_it() -> None:
    code = f"import sys, {assets.__name__}; print(sorted({{'airflow', 'nbformat', 'openlineage'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
