"""The settings that a space's start script switches on and off, by the kind of space and by its image.

They come from ``start-jupyter-server`` and the Dockerfiles in aws/sagemaker-distribution. Each script belongs to
one image. Here the installed packages identify the script. If they do not, the image's version does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SPACE_KINDS = ("stock", "private", "shared")

PACKAGES = (
    *("jupyter_ai", "jupyter_server_documents", "jupyter_collaboration", "jupyter_server_ydoc"),
    *("jupyter_server_fileid", "jupyterlab_chat", "sagemaker_jupyterlab_extension_common"),
    *(
        "sagemaker_studio_dataengineering_extensions",
        "sagemaker_gen_ai_jupyterlab_extension",
        "jupyter_server_mcp",
    ),
)
"""The packages that decide this. All except SageMaker's have a server extension of the same name."""

# Switched off in the stock local Studio: a developer's environment may have them.
_NOT_IN_STOCK = ("jupyter_ai", "jupyter_server_documents", "jupyter_collaboration", "jupyter_server_ydoc")
# Extensions of SageMaker Unified Studio. Every other Studio removes them or switches them off at its start.
_UNIFIED_STUDIO = ("sagemaker_studio_jupyter_scheduler", "sagemaker_jupyter_server_extension")

_COLLABORATION, _DOCPROVIDER = "@jupyter/collaboration-extension", "@jupyter/docprovider-extension"
_CHAT, _DOCUMENTS = "jupyterlab-chat-extension", "@jupyter-ai-contrib/server-documents"

# For a minor version: the first patch whose script removes jupyter_server_documents. The script of 4.5 does not.
_REMOVED_SINCE = {(4, 1): 9, (4, 2): 6, (4, 3): 3, (4, 4): 1}

_IDENTITY = "sagemaker_jupyterlab_extension_common.identity.SagemakerIdentityProvider"


@dataclass(frozen=True)
class Setup:
    """The settings for the start of a server, in addition to those of every server.

    :param extensions: server extensions to switch on or off. The packages decide about all others.
    :param lab_extensions: the same for the extensions of the JupyterLab page in the browser.
    :param args: arguments of the command line.
    :param environment: variables for the server and its kernels.
    :param shared_store: whether to use SageMaker's store of shared documents.
    """

    extensions: dict[str, bool] = field(default_factory=dict)
    lab_extensions: dict[str, bool] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    shared_store: bool = False


def setup_of(kind: str, packages: Mapping[str, str], image: str = "") -> Setup:
    """Return the settings for the start of a space's server.

    :param kind: one of :data:`SPACE_KINDS`.
    :param packages: the installed packages of :data:`PACKAGES`, with their versions.
    :param image: the image's version, such as ``4.4.1``; empty if unknown. Only the version distinguishes 4.4.0
        from 4.4.1.
    """
    check_kind(kind)
    if kind == "stock":
        return Setup({name: False for name in _NOT_IN_STOCK if name in packages})
    shared = kind == "shared"
    extensions: dict[str, bool] = {}
    if "jupyter_server_documents" in packages and _removes_documents(image):
        gone = ["jupyter_ai", "jupyter_server_documents", "jupyterlab_chat"]
        if not shared:
            # The package manager also removes the packages that only collaboration needs.
            gone += ["jupyter_collaboration", "jupyter_server_ydoc", "jupyter_server_fileid"]
        extensions = {name: False for name in gone if name in packages}
        if shared and "jupyter_server_ydoc" in packages:
            extensions["jupyter_server_ydoc"] = True
    elif not shared and "jupyter_server_mcp" in packages and (4, 1, 0) <= _numbers(image) <= (4, 1, 3):
        extensions["jupyter_server_mcp"] = True
    if "sagemaker_studio_dataengineering_extensions" in packages:
        extensions |= dict.fromkeys(_UNIFIED_STUDIO, False)
    # The extension of Amazon Q is switched off since 4.4.
    if "sagemaker_gen_ai_jupyterlab_extension" in packages and _number(packages, "jupyter_server_documents") >= (
        0,
        3,
    ):
        extensions["sagemaker_gen_ai_jupyterlab_extension"] = False
    # Images before 1.7 have no collaboration: their shared spaces are like private ones.
    together = shared and "jupyter_collaboration" in packages
    args: tuple[str, ...] = ("--collaborative",) if together else ()
    known = together and "sagemaker_jupyterlab_extension_common" in packages
    if known:
        args += (f"--ServerApp.identity_provider_class={_IDENTITY}",)
    return Setup(
        extensions,
        _lab_extensions(shared, packages, image),
        args,
        {"SAGEMAKER_SPACE_TYPE_LOWERCASE": kind},
        known,
    )


def check_kind(kind: str) -> None:
    """Raise :class:`ValueError` if this is not a kind of space."""
    if kind not in SPACE_KINDS:
        raise ValueError(f"space_kind must be one of {', '.join(SPACE_KINDS)}, not {kind!r}")


def _lab_extensions(shared: bool, packages: Mapping[str, str], image: str) -> dict[str, bool]:
    """Return the extensions that the page in the browser loads. Images 3.1 to 3.4 differ from patch to patch."""
    if "jupyter_collaboration" not in packages:
        return {}
    documents = _number(packages, "jupyter_server_documents")
    if not documents:
        # v1 and v2 have no document provider of its own: 2.14 has the package, and removes it in a shared space.
        own = _number(packages, "jupyter_collaboration") >= (3,)
        return {_COLLABORATION: shared, _DOCPROVIDER: shared and own}
    if _removes_documents(image):
        return {_COLLABORATION: shared, _DOCPROVIDER: shared, _CHAT: False, _DOCUMENTS: False}
    # Since 0.3, in 4.4, several users can edit a document together in a private space as well.
    new = documents >= (0, 3)
    return {_COLLABORATION: shared or new, _DOCPROVIDER: new, _CHAT: not shared}


def _removes_documents(image: str) -> bool:
    version = _numbers(image)
    return len(version) >= 3 and version[2] >= _REMOVED_SINCE.get((version[0], version[1]), version[2] + 1)


def _number(packages: Mapping[str, str], name: str) -> tuple[int, ...]:
    return _numbers(packages.get(name, ""))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``4.4.1`` is (4, 4, 1). Empty if it does not start with one."""
    found = []
    for part in version.strip().removeprefix("v").split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)
