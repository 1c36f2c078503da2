from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import airflow
import jsonschema
import pytest

import airflow_provider_smstudio
from airflow_provider_smstudio.get_provider_info import get_provider_info
from airflow_provider_smstudio.hooks.studio import SageMakerStudioHook

AIRFLOW = Path(airflow.__file__).parent
VERSION = tuple(int(part) for part in airflow.__version__.split(".")[:2])
INFO = get_provider_info()
CONNECTION_TYPE = INFO["connection-types"][0]


def _schema(name):
    return json.loads((AIRFLOW / name).read_text())


def test_metadata_is_valid_for_this_airflow():
    jsonschema.validate(INFO, _schema("provider_info.schema.json"))


def test_connection_types_are_valid_for_this_airflows_provider_yaml():
    # The fuller schema: the runtime does not check it, but from 3.2 on the UI draws the form after it.
    schema = _schema("provider.yaml.schema.json")
    part = {"$schema": schema["$schema"], **schema["properties"]["connection-types"]}
    jsonschema.validate(INFO["connection-types"], part)


def test_the_distribution_names_the_entry_point_and_the_metadata_name_the_distribution():
    (entry_point,) = importlib.metadata.distribution("airflow-provider-smstudio").entry_points.select(
        group="apache_airflow_provider"
    )
    assert entry_point.load() is get_provider_info
    assert INFO["package-name"] == "airflow-provider-smstudio"


def _modules():
    kinds = ("operators", "sensors", "hooks")
    return [module for kind in kinds for item in INFO[kind] for module in item["python-modules"]]


@pytest.mark.parametrize("module", _modules())
def test_the_modules_named_import(module):
    assert importlib.import_module(module)


@pytest.mark.parametrize("path", [*INFO["extra-links"], CONNECTION_TYPE["hook-class-name"]])
def test_the_classes_named_exist(path):
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_every_module_with_airflow_classes_is_named():
    package = Path(airflow_provider_smstudio.__file__).parent
    for kind in ("operators", "sensors", "hooks"):
        found = {
            f"airflow_provider_smstudio.{kind}.{path.stem}"
            for path in (package / kind).glob("*.py")
            if not path.stem.startswith("_") and path.stem != "base"
        }
        assert found == {module for item in INFO[kind] for module in item["python-modules"]}


def test_integrations_that_are_used_are_declared():
    declared = {item["integration-name"] for item in INFO["integrations"]}
    used = {item["integration-name"] for kind in ("operators", "sensors", "hooks") for item in INFO[kind]}
    assert used == declared


def test_hook_attributes_agree_with_the_metadata():
    assert CONNECTION_TYPE["connection-type"] == SageMakerStudioHook.conn_type
    assert CONNECTION_TYPE["hook-name"] == SageMakerStudioHook.hook_name


def test_field_behaviour_of_the_hook_is_that_of_the_metadata():
    assert SageMakerStudioHook.get_ui_field_behaviour() == {
        "hidden_fields": ["port", "schema", "password"],
        "relabeling": {"host": "Domain ID", "login": "User profile name"},
        "placeholders": {"host": "d-xxxxxxxxxxxx", "login": "ana"},
    }
    behaviour = CONNECTION_TYPE["ui-field-behaviour"]
    assert set(behaviour) == {"hidden-fields", "relabeling", "placeholders"}


@pytest.fixture
def form_modules(monkeypatch):
    """Stand in for the form libraries of the old UI, as the API server of Airflow 3.0 and 3.1 does.

    Airflow 3 does not bring these libraries along, and the fields' values are all that is looked at.
    """

    class Field:
        def __init__(self, label, *, widget, description, default, validators):
            self.label, self.description, self.default = label, description, default
            self.validators = validators

    made: dict[str, dict[str, Any]] = {
        "wtforms": {"StringField": Field},
        "wtforms.validators": {"Optional": lambda: None, "any_of": list},
        "flask_babel": {"lazy_gettext": str},
        "flask_appbuilder": {},
        "flask_appbuilder.fieldwidgets": {"BS3TextFieldWidget": object},
    }
    for name, content in made.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("form_modules")
def test_form_of_the_hook_is_that_of_the_metadata():
    widgets = SageMakerStudioHook.get_connection_form_widgets()
    assert list(widgets) == list(CONNECTION_TYPE["conn-fields"])
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        widget = widgets[name]
        assert (widget.label, widget.description) == (field["label"], field["description"])
        assert widget.default == field["schema"].get("default")
        choices = [validator for validator in widget.validators if validator is not None]
        assert choices == ([field["schema"]["enum"]] if "enum" in field["schema"] else [])


# Each Airflow version's own code, in a process of its own because it warns about itself while it loads.
LOAD = """
import json
from airflow.providers_manager import ProvidersManager
from airflow_provider_smstudio._compat import BaseHook

manager = ProvidersManager()
manager.initialize_providers_list()
manager.initialize_providers_hooks()
hook = manager.hooks["sagemaker_studio"]
widgets = manager.connection_form_widgets
print(json.dumps({
    "version": manager.providers["airflow-provider-smstudio"].version,
    "name": hook.hook_name,
    "attribute": hook.connection_id_attribute_name,
    "class": hook.hook_class_name,
    "testable": hook.connection_testable,
    "fields": [w.field_name for k, w in widgets.items() if k.startswith("extra__sagemaker_studio__")],
    "hidden": manager.field_behaviours.get("sagemaker_studio", {}).get("hidden_fields", []),
    "links": sorted(manager.extra_links_class_names),
    "space": BaseHook.get_connection("studio").get_hook().settings.space_name,
}))
"""


def test_this_airflow_loads_the_provider_and_draws_the_form(monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_STUDIO",
        json.dumps({"conn_type": "sagemaker_studio", "host": "d-x", "login": "joe", "extra": {"space_name": "s"}}),
    )
    # Before 3.2, Airflow draws the form by Flask-AppBuilder. Airflow 3 installs that only with its provider `fab`.
    drawn = VERSION >= (3, 2) or find_spec("flask_appbuilder") is not None
    done = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "airflow_provider_smstudio.links.notebook.SageMakerStudioNotebookLink" in loaded.pop("links")
    assert loaded == {
        "version": airflow_provider_smstudio.__version__,
        "name": "Amazon SageMaker Studio",
        "attribute": "studio_conn_id",
        "class": "airflow_provider_smstudio.hooks.studio.SageMakerStudioHook",
        "testable": True,
        "fields": ["space_name", "app_type", "region_name", "aws_conn_id"] if drawn else [],
        "hidden": ["port", "schema", "password"] if drawn else [],
        "space": "s",
    }
