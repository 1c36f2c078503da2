"""The tree of errors: as drawn, picklable with its fields, exported."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from airflow_provider_smstudio.studio import errors
from airflow_provider_smstudio.studio.errors import CellError, KernelNotFoundError, StudioError

CLASSES: dict[str, type[Any]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
}
FIELDS: dict[str, dict[str, object]] = {
    "ParameterError": {"parameter": "a"},
    "NotebookNotFoundError": {"path": "a.ipynb"},
    "NotANotebookError": {"path": "a.ipynb"},
    "KernelNotFoundError": {"kernel_name": "k", "available": ["a", "b"]},
    "OutputPathError": {"path": "out.ipynb"},
    "ControlPlaneError": {"operation": "DescribeApp", "code": "AccessDeniedException"},
    "ResourceNotFoundError": {"operation": "DescribeApp", "code": "ResourceNotFound", "resource": "d-1"},
    "AppError": {"app_type": "JupyterLab", "status": "Pending"},
    "AppNotReadyError": {"app_type": "JupyterLab", "status": "Pending"},
    "AppInUseError": {"app_type": "JupyterLab", "status": "InService", "used_by": ["analysis.ipynb"]},
    "AppFailedError": {"app_type": "JupyterLab", "status": "Failed", "failure_reason": "quota"},
    "ServerError": {"status": 500, "method": "GET", "path": "api/kernels"},
    "SaveError": {"status": 413, "method": "PUT", "path": "api/contents/a"},
    "RunError": {"output_path": "a"},
    "KernelStartError": {"output_path": "a"},
    "CellError": {
        "output_path": "a",
        "cell_number": 2,
        "cell_index": 3,
        "source": "1/0",
        "ename": "E",
        "evalue": "v",
        "traceback": "t\nü",
    },
    "CellTimeoutError": {"output_path": "a", "cell_number": 2, "cell_index": 3, "timeout": 1.5},
    "KernelDiedError": {"output_path": "a", "cell_number": 2, "cell_index": 3},
    "HandedValueError": {"output_path": "a", "value_name": "rows"},
    "UnknownOutcomeError": {"output_path": "a", "cell_number": 2, "cell_index": 3},
    "RunTakenOverError": {"output_path": "a"},
    "RunTimeoutError": {"output_path": "a"},
    "RunKilledError": {"output_path": "a"},
}


def drawing():
    """Return the lines of the tree in the module's docstring: depth, name, and other base."""
    tree = errors.__doc__.split("The tree::")[1].split("Every error")[0]
    found = []
    for line in filter(str.strip, tree.splitlines()):
        match = re.match(r"    ([ |`-]*)([A-Z]\w+)(?: \(also (\w+)\))?(?:\s{2,}\S.*)?$", line)
        assert match, line
        found.append((len(match[1]) // 3, match[2], match[3]))
    return found


def test_the_tree_is_as_drawn():
    drawn: dict[str, list[str]] = {}
    path: list[str] = []
    for depth, name, other in drawing():
        del path[depth:]
        drawn[name] = [path[-1] if path else "Exception", *([other] if other else [])]
        path.append(name)
    assert drawn == {name: [base.__name__ for base in value.__bases__] for name, value in CLASSES.items()}


def test_invalid_input_is_a_value_error_and_nothing_else_is():
    below = {name for name, value in CLASSES.items() if issubclass(value, ValueError)}
    assert below == {
        "InvalidInputError",
        "ParameterError",
        "NotebookNotFoundError",
        "NotANotebookError",
        "KernelNotFoundError",
        "OutputPathError",
    }


def declared_fields(cls):
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


@pytest.mark.parametrize("name", CLASSES)
def test_each_error_declares_and_documents_its_fields(name):
    cls = CLASSES[name]
    assert set(FIELDS.get(name, {})) == declared_fields(cls)
    documented = {field for base in cls.__mro__ for field in re.findall(r":ivar (\w+):", base.__doc__ or "")}
    assert documented == declared_fields(cls)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_each_error_pickles_with_its_fields(name, protocol):
    error = CLASSES[name]("what went wrong: ü", **FIELDS.get(name, {}))
    for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(back) is CLASSES[name]
        assert str(back) == back.message == "what went wrong: ü"
        assert back.args == ("what went wrong: ü",)
        for field, value in FIELDS.get(name, {}).items():
            assert getattr(back, field) == value
        assert back.fields == FIELDS.get(name, {})


@pytest.mark.parametrize("name", CLASSES)
def test_fields_that_are_not_given_are_empty(name):
    error = CLASSES[name]("message")
    assert not any(getattr(error, field) for field in declared_fields(CLASSES[name]))
    assert error.fields == {}


def test_fields_are_kept_on_the_error_and_not_on_its_class():
    KernelNotFoundError("x", available=["a"])
    CellError("x", source="s")
    assert KernelNotFoundError("y").available == []
    assert CellError("y").source == ""


def test_an_unknown_field_is_kept_as_well():
    error = pickle.loads(pickle.dumps(StudioError("x", extra=1)))
    assert error.extra == 1
