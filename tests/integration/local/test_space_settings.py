"""What is switched on and off for a kind of space, decided from literal package lists of the images."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.local.server.space_settings import PACKAGES, setup_of

COMMON = {"sagemaker_jupyterlab_extension_common": "0.5.1"}
# Of those packages that matter, what the lock files of these images hold.
IMAGES: dict[str, dict[str, str]] = {
    "1.0.0": {"jupyter_ai": "2.4.0"},
    "1.13.1": {"jupyter_collaboration": "1.2.0", "jupyter_server_fileid": "0.9.2", **COMMON},
    "2.14.10": {"jupyter_collaboration": "2.1.5", "jupyter_server_ydoc": "2.1.0", **COMMON},
    "3.9.10": {"jupyter_collaboration": "3.1.2", "jupyter_server_ydoc": "1.1.2", **COMMON},
    "4.0.0": {"jupyter_collaboration": "4.3.0", "jupyter_server_ydoc": "2.3.0", **COMMON},
    "4.3.2": {"jupyter_collaboration": "4.4.0", "jupyter_server_ydoc": "2.4.0", **COMMON},
    "4.4.0": {"jupyter_collaboration": "4.4.2", "jupyter_server_ydoc": "2.4.2", **COMMON},
}
IMAGES["4.3.2"] |= {
    "jupyter_server_documents": "0.2.6",
    "jupyter_server_fileid": "0.9.2",
    "jupyterlab_chat": "0.22.1",
}
IMAGES["4.4.0"] |= {
    "jupyter_server_documents": "0.3.3",
    "jupyter_server_fileid": "0.9.2",
    "jupyterlab_chat": "0.23.1",
}
IMAGES["4.4.0"] |= {"jupyter_ai": "3.1.3"}
IMAGES["4.4.1"] = IMAGES["4.4.0"]

TOGETHER = (
    "--collaborative",
    "--ServerApp.identity_provider_class=sagemaker_jupyterlab_extension_common.identity.SagemakerIdentityProvider",
)
COLLABORATION, DOCPROVIDER = "@jupyter/collaboration-extension", "@jupyter/docprovider-extension"
CHAT, DOCUMENTS = "jupyterlab-chat-extension", "@jupyter-ai-contrib/server-documents"
REMOVED = ("jupyter_ai", "jupyter_server_documents", "jupyterlab_chat")
REMOVED_PRIVATE = (*REMOVED, "jupyter_collaboration", "jupyter_server_ydoc", "jupyter_server_fileid")


@pytest.mark.parametrize(
    ("image", "extensions", "page"),
    [
        ("1.0.0", {}, {}),
        ("1.13.1", {}, {COLLABORATION: False, DOCPROVIDER: False}),
        ("2.14.10", {}, {COLLABORATION: False, DOCPROVIDER: False}),
        ("3.9.10", {}, {COLLABORATION: False, DOCPROVIDER: False}),
        ("4.0.0", {}, {COLLABORATION: False, DOCPROVIDER: False}),
        ("4.3.2", {}, {COLLABORATION: False, DOCPROVIDER: False, CHAT: True}),
        ("4.4.0", {}, {COLLABORATION: True, DOCPROVIDER: True, CHAT: True}),
        (
            "4.4.1",
            dict.fromkeys(REMOVED_PRIVATE, False),
            {COLLABORATION: False, DOCPROVIDER: False, CHAT: False, DOCUMENTS: False},
        ),
    ],
)
def test_private(image: str, extensions: dict[str, bool], page: dict[str, bool]) -> None:
    setup = setup_of("private", IMAGES[image], image)
    assert (setup.extensions, setup.lab_extensions, setup.args) == (extensions, page, ())
    assert setup.environment == {"SAGEMAKER_SPACE_TYPE_LOWERCASE": "private"}
    assert not setup.shared_store


@pytest.mark.parametrize(
    ("image", "extensions", "page"),
    [
        ("1.13.1", {}, {COLLABORATION: True, DOCPROVIDER: False}),
        ("2.14.10", {}, {COLLABORATION: True, DOCPROVIDER: False}),
        ("3.9.10", {}, {COLLABORATION: True, DOCPROVIDER: True}),
        ("4.0.0", {}, {COLLABORATION: True, DOCPROVIDER: True}),
        ("4.3.2", {}, {COLLABORATION: True, DOCPROVIDER: False, CHAT: False}),
        ("4.4.0", {}, {COLLABORATION: True, DOCPROVIDER: True, CHAT: False}),
        (
            "4.4.1",
            {**dict.fromkeys(REMOVED, False), "jupyter_server_ydoc": True},
            {COLLABORATION: True, DOCPROVIDER: True, CHAT: False, DOCUMENTS: False},
        ),
    ],
)
def test_shared(image: str, extensions: dict[str, bool], page: dict[str, bool]) -> None:
    setup = setup_of("shared", IMAGES[image], image)
    assert (setup.extensions, setup.lab_extensions, setup.args) == (extensions, page, TOGETHER)
    assert setup.environment == {"SAGEMAKER_SPACE_TYPE_LOWERCASE": "shared"}
    assert setup.shared_store


def test_shared_without_collaboration() -> None:
    setup = setup_of("shared", IMAGES["1.0.0"], "1.0.0")
    assert (setup.extensions, setup.lab_extensions, setup.args, setup.shared_store) == ({}, {}, (), False)


@pytest.mark.parametrize("kind", ["private", "shared"])
@pytest.mark.parametrize(
    ("version", "removed"),
    [
        *[(version, False) for version in ("", "nonsense", "4.4", "4.1.8", "4.2.5", "4.3.2", "4.4.0", "4.5.0")],
        *[(version, True) for version in ("4.1.9", "4.2.6", "4.2.10", "4.3.3", "4.4.1", "v4.4.1\n")],
    ],
)
def test_the_version_decides_whether_documents_are_removed(kind: str, version: str, removed: bool) -> None:
    extensions = setup_of(kind, IMAGES["4.4.0"], version).extensions
    assert ("jupyter_server_documents" in extensions) == removed


@pytest.mark.parametrize("image", IMAGES)
def test_stock(image: str) -> None:
    setup = setup_of("stock", IMAGES[image], image)
    off = {"jupyter_ai", "jupyter_server_documents", "jupyter_collaboration", "jupyter_server_ydoc"}
    assert setup.extensions == dict.fromkeys(off & set(IMAGES[image]), False)
    assert (setup.lab_extensions, setup.args, setup.environment, setup.shared_store) == ({}, (), {}, False)


def test_what_belongs_to_unified_studio_is_off() -> None:
    names = ("sagemaker_studio_dataengineering_extensions", "sagemaker_gen_ai_jupyterlab_extension")
    packages = {**IMAGES["4.4.0"], **dict.fromkeys(names, "1.0")}
    assert setup_of("private", packages, "4.4.0").extensions == {
        "sagemaker_studio_jupyter_scheduler": False,
        "sagemaker_jupyter_server_extension": False,
        "sagemaker_gen_ai_jupyterlab_extension": False,
    }


@pytest.mark.parametrize(
    ("kind", "image", "on"),
    [
        ("private", "4.1.0", True),
        ("private", "4.1.3", True),
        ("private", "4.1.4", False),
        ("shared", "4.1.0", False),
    ],
)
def test_the_servers_own_tools_in_the_first_patches_of_4_1(kind: str, image: str, on: bool) -> None:
    packages = {**IMAGES["4.3.2"], "jupyter_server_mcp": "0.1.2"}
    assert setup_of(kind, packages, image).extensions == ({"jupyter_server_mcp": True} if on else {})


def test_every_name_in_the_lists_is_asked_for() -> None:
    assert {name for packages in IMAGES.values() for name in packages} <= set(PACKAGES)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="space_kind must be one of stock, private, shared, not 'public'"):
        setup_of("public", {})
