"""Prepare a notebook for its run: read and check it, inject its parameters, and find the path of its output."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from nbformat import NotebookNode

import airflow_provider_smstudio
from airflow_provider_smstudio.studio.errors import InvalidInputError, OutputPathError
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.notebook import parameters
from airflow_provider_smstudio.studio.protocol import kernelspecs, messages
from airflow_provider_smstudio.studio.runs import saved_run
from airflow_provider_smstudio.studio.runs.identity import Identity
from airflow_provider_smstudio.studio.runs.spec import RunSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A notebook that is ready to run.

    :ivar notebook: the notebook, with its parameters injected and the metadata of its run.
    :ivar kernel: the kernel that runs it.
    :ivar output_path: the path of the executed notebook.
    :ivar output_exists: whether a notebook already exists at this path.
    """

    notebook: NotebookNode
    kernel: kernelspecs.KernelChoice
    output_path: str
    output_exists: bool


def prepare(server: JupyterServer, spec: RunSpec, who: Identity, *, check: Callable[[], None]) -> Prepared:
    """Prepare a notebook. It starts nothing that costs money.

    :param server: the Jupyter server.
    :param spec: what to run.
    :param who: the identity of the run.
    :param check: called between the steps. If it raises an error, the preparation ends.
    :raises InvalidInputError: when the notebook cannot be run as requested.
    """
    path = nb.clean_path(spec.notebook_path, "notebook_path")
    notebook = server.read_notebook(path)
    check()
    specs = server.kernelspecs()
    choice = kernelspecs.choose(
        specs,
        notebook.metadata,
        kernel_name=spec.kernel_name,
        instance_type=spec.instance_type,
        classic=server.classic,
    )
    if choice.note:
        log.info("%s", choice.note)
    kernelspec = specs.spec(choice.name)
    language = parameters.language_of(kernelspec.get("language") or _notebook_language(notebook), choice.name)
    parameters.check(notebook, spec.parameters, language, strict=spec.strict_parameters)
    if spec.parameters and language is not None:
        if parameters.find_cell(notebook, parameters.PARAMETERS_TAG) is None:
            log.warning("%s has no cell tagged 'parameters': the parameters are set at its top", path)
        parameters.inject(notebook, spec.parameters, language)
    _check_sizes(notebook)
    check()
    output_path, exists = _prepare_output(server, spec, path)
    digest = saved_run.fingerprint(notebook, choice.name, spec.parameters)
    nb.begin_metadata(
        notebook,
        parameters=spec.parameters,
        input_path=path,
        output_path=output_path,
        version=airflow_provider_smstudio.__version__,
    )
    notebook.metadata["kernelspec"] = NotebookNode(
        name=choice.name,
        display_name=kernelspec.get("display_name") or choice.name,
        language=kernelspec.get("language") or _notebook_language(notebook) or "",
    )
    saved_run.begin(notebook, who, digest)
    return Prepared(notebook, choice, output_path, exists)


def _prepare_output(server: JupyterServer, spec: RunSpec, notebook_path: str) -> tuple[str, bool]:
    """Return the path of the executed notebook, and whether a notebook already exists there."""
    if spec.output_path is None:
        path = nb.default_output_path(notebook_path, spec.run_name)
    else:
        path = nb.clean_path(spec.output_path, "output_path")
    if path == notebook_path:
        raise OutputPathError(
            f"output_path {path!r} is the notebook itself: the source is never overwritten", path=path
        )
    if not path.endswith(".ipynb"):
        raise OutputPathError(f"output_path {path!r} must end in .ipynb", path=path)
    kind = server.content_type(path)
    if kind == "directory":
        raise OutputPathError(f"output_path {path!r} is a folder", path=path)
    folder = posixpath.dirname(path)
    if folder and (spec.output_path is None or spec.create_output_folder):
        server.make_folders(folder)
    elif folder and server.content_type(folder) != "directory":
        raise OutputPathError(
            f"the folder {folder!r} of output_path does not exist: create it, or set create_output_folder",
            path=path,
        )
    return path, kind == "notebook"


def _check_sizes(notebook: NotebookNode) -> None:
    for cell in nb.code_cells(notebook):
        size = len(cell.source.encode())
        if size > messages.MAX_REQUEST_BYTES - 65536:
            raise InvalidInputError(
                f"cell {cell.number} has {size / 2**20:.0f} MiB of source; a Jupyter server accepts at most "
                "10 MiB. Pass large values in a file"
            )


def _notebook_language(notebook: NotebookNode) -> str | None:
    metadata = notebook.metadata
    for part, key in (("kernelspec", "language"), ("language_info", "name")):
        value = (metadata.get(part) or {}).get(key)
        if value:
            return str(value)
    return None
