"""What templates and XComs make of parameters, and what of it arrives in the notebook."""

from __future__ import annotations

import json
import uuid
from collections import UserDict, UserList, deque, namedtuple
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import lazy_object_proxy
import nbformat
import pendulum
import pytest
from jinja2 import StrictUndefined
from nbformat.v4 import new_code_cell, new_notebook

from airflow_provider_smstudio import _argument_values as values
from airflow_provider_smstudio._compat import Context
from airflow_provider_smstudio._run_name import run_name
from airflow_provider_smstudio.local import LocalStudio
from airflow_provider_smstudio.operators.notebook import SageMakerStudioNotebookOperator
from airflow_provider_smstudio.studio.errors import InvalidInputError, ParameterError
from tests.provider.running import context_with

if TYPE_CHECKING:
    from airflow.sdk import DAG, XComArg
    from airflow.sdk.definitions.param import ParamsDict
    from airflow.sdk.definitions.template import literal
else:
    try:
        from airflow.sdk import DAG, XComArg
        from airflow.sdk.definitions.param import ParamsDict
        from airflow.sdk.definitions.template import literal
    except ImportError:  # Airflow 2
        from airflow import DAG
        from airflow.models.param import ParamsDict
        from airflow.models.xcom_arg import XComArg
        from airflow.utils.template import literal

UTC = timezone.utc
DAY = pendulum.datetime(2026, 10, 1)
Pair = namedtuple("Pair", "left right")


class Lazy(Sequence):
    """As the output of a mapped task: a sequence that looks its items up one by one."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def context(**more: Any) -> Context:
    """A part of what a task instance's context holds."""
    run = SimpleNamespace(
        logical_date=datetime(2026, 10, 1, tzinfo=UTC),
        data_interval_start=datetime(2026, 10, 1, tzinfo=UTC),
        data_interval_end=datetime(2026, 10, 2, tzinfo=UTC),
        conf={"zip": "01234", "code": "12345", "items": [1, "2", None], "rate": 0.5},
    )
    params = ParamsDict(
        {"top": 3, "rate": 1.0, "label": "1_000", "flag": True, "none": None, "tree": {"a": [1, {}]}}
    )
    given = {"data_interval_start": DAY, "data_interval_end": DAY.add(days=1), "logical_date": DAY}
    found = {"ds": "2026-10-01", "ds_nodash": "20261001", "dag_run": run, "params": params, **given, **more}
    return cast("Context", found)


def rendered(parameters: Any, *, native: bool = True, **more: Any) -> Any:
    """Return what a DAG's templates make of parameters."""
    with DAG("typed", schedule=None, start_date=datetime(2026, 1, 1), render_template_as_native_obj=native):
        task = SageMakerStudioNotebookOperator(task_id="report", notebook_path="a.ipynb", parameters=parameters)
    task.render_template_fields(context(**more))
    return task.parameters


def typed(parameters: Any, **more: Any) -> dict[str, Any]:
    return values.parameters(rendered(parameters, **more))


def assert_exactly(value: object, expected: object) -> None:
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ dag_run.logical_date }}", datetime(2026, 10, 1, tzinfo=UTC)),
        ("{{ dag_run.logical_date.date() }}", date(2026, 10, 1)),
        ("{{ data_interval_start }}", DAY),
        ("{{ data_interval_end.date() }}", DAY.add(days=1).date()),
        ("{{ dag_run.data_interval_end - dag_run.data_interval_start }}", timedelta(days=1)),
        ("{{ missing | default(none) }}", None),
        ("{{ ds }}", "2026-10-01"),
        (
            "{{ params }}",
            {"top": 3, "rate": 1.0, "label": "1_000", "flag": True, "none": None, "tree": {"a": [1, {}]}},
        ),
        ("{{ params.top }}", 3),
        ("{{ params.rate }}", 1.0),
        ("{{ params.flag }}", True),
        ("{{ params.none }}", None),
        ("{{ params.tree }}", {"a": [1, {}]}),
        ("{{ dag_run.conf['items'] }}", [1, "2", None]),
        ("{{ dag_run.conf.zip }}", "01234"),
        ("{{ proxy }}", DAY),
        ("{{ nothing }}", None),
        ("{{ mapped }}", [{"a": 1}, [2], None]),
    ],
)
def test_native_templates_yield_values(template: str, value: object) -> None:
    more = {
        "proxy": lazy_object_proxy.Proxy(lambda: DAY),
        "nothing": lazy_object_proxy.Proxy(lambda: None),
        "mapped": Lazy({"a": 1}, Lazy(2), None),
    }
    found = typed({"x": template, "deep": [{"x": template}]}, **more)
    assert_exactly(found["x"], value)
    assert_exactly(found["deep"][0]["x"], value)


@pytest.mark.parametrize("text", ["12345", "1_000", "None", "[1]", "'q'", "...", "", " \"'\\\n😀 " * 30])
def test_a_text_stays_a_text(text: str) -> None:
    """The ways that the README names; without them a text that looks like Python becomes what it looks like."""
    more = {"dag_run": SimpleNamespace(conf={"x": text})}
    assert typed({"x": "{{ dag_run.conf.x | pprint }}"}, **more) == {"x": text}
    assert typed("{{ dag_run.conf }}", **more) == {"x": text}
    assert typed({"x": literal(text)}, **more) == {"x": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("12345", 12345), ("1_000", 1000), ("None", None), ("[1]", [1]), ("'q'", "q"), ("01234", "01234")],
)
def test_a_text_that_looks_like_python_is_taken_for_it(text: str, value: object) -> None:
    for template in (text, "{{ dag_run.conf.x }}", "{{ dag_run.conf.x | string }}"):
        assert_exactly(typed({"x": template}, dag_run=SimpleNamespace(conf={"x": text}))["x"], value)
    assert_exactly(typed({"x": "{{ ds_nodash }}"})["x"], 20261001)


def test_other_templates_yield_text() -> None:
    found = values.parameters(
        rendered({"x": "{{ params.top }}", "day": "{{ dag_run.logical_date }}"}, native=False)
    )
    assert found == {"x": "3", "day": "2026-10-01 00:00:00+00:00"}


def test_an_xcom_is_no_template() -> None:
    """Its value comes as it is; here from an argument that stands for the output of a task."""

    class Output(XComArg):
        def resolve(self, *_: Any, **__: Any) -> Any:
            return Lazy("12345", {"when": DAY, "text": "{{ ds }}"})

        def iter_references(self) -> Any:
            return iter(())

    found = typed({"x": Output(), "deep": {"x": [Output()]}})
    expected = ["12345", {"when": DAY, "text": "{{ ds }}"}]
    assert found == {"x": expected, "deep": {"x": [expected]}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ParamsDict({"a": [1, {"b": None}]}), {"a": [1, {"b": None}]}),
        (UserDict(a=UserList([1])), {"a": [1]}),
        (MappingProxyType({"a": Lazy(1)}), {"a": [1]}),
        ([Lazy((Lazy(1), 2)), deque([3])], [[([1], 2)], [3]]),
        (range(3), [0, 1, 2]),
        (Pair(1, Lazy()), (1, [])),
        ({1, 2}, {1, 2}),
        (lazy_object_proxy.Proxy(lambda: lazy_object_proxy.Proxy(lambda: Lazy(1))), [1]),
    ],
)
def test_containers_become_plain(value: object, expected: object) -> None:
    assert_exactly(values.plain("x", value), expected)
    assert values.plain("x", [{"k": value}]) == [{"k": expected}]


@pytest.mark.parametrize(
    "value", [DAY, DAY.date(), Decimal(1), uuid.UUID(int=1), b"x", bytearray(b"x"), object(), "a"]
)
def test_all_else_stays_as_it_is(value: object) -> None:
    assert values.plain("x", value) is value


def test_the_parameters_as_a_whole() -> None:
    assert typed("{{ params }}")["tree"] == {"a": [1, {}]}
    assert values.parameters(lazy_object_proxy.Proxy(lambda: ParamsDict({"a": 1}))) == {"a": 1}
    assert values.parameters(None) == values.parameters("") == {}
    for bad in ([1], Lazy(1), "{'a': 1}"):
        with pytest.raises(InvalidInputError, match="parameters must be a dict, not (list|str)"):
            values.parameters(bad)


@pytest.mark.parametrize("template", ["{{ run_after }}", "{{ dag_run.no_such_date }}", "{{ params['nope'] }}"])
def test_what_a_template_does_not_find_is_named(template: str) -> None:
    for parameters in ({"day": template}, {"day": [{"a": template}]}):
        with pytest.raises(ParameterError, match="parameter 'day' has no value in this run: .*default") as caught:
            typed(parameters, params={})
        assert caught.value.parameter == "day"
    with pytest.raises(ParameterError, match="parameters has no value in this run"):
        values.parameters(StrictUndefined(name="x"))


def test_a_run_of_airflow_3_without_a_logical_date() -> None:
    after = datetime(2026, 10, 1, 7, tzinfo=UTC)
    run = SimpleNamespace(logical_date=None, data_interval_start=None, data_interval_end=None, run_after=after)
    parameters = {
        "day": "{{ (dag_run.logical_date or dag_run.run_after).date() }}",
        "at": "{{ dag_run.logical_date }}",
        "start": "{{ dag_run.data_interval_start }}",
        "text": "{{ (dag_run.logical_date or dag_run.run_after).date().isoformat() }}",
    }
    expected = {"day": date(2026, 10, 1), "at": None, "start": None, "text": "2026-10-01"}
    assert typed(parameters, dag_run=run) == expected


def test_what_contains_itself_is_refused_at_once() -> None:
    items: list[Any] = []
    items += [items, items]
    with pytest.raises(ParameterError, match="'x' is nested more than 100 deep, or contains itself"):
        values.parameters({"x": items})


class TestInTheNotebook:
    """The values that a kernel gets."""

    def operator(self, lab: LocalStudio, notebook_path: str, **arguments: Any) -> SageMakerStudioNotebookOperator:
        return SageMakerStudioNotebookOperator(
            task_id="report",
            notebook_path=notebook_path,
            domain_id=lab.domain_id,
            user_profile_name=lab.user_profile_name,
            space_name=lab.space_name,
            region_name="us-east-1",
            **arguments,
        )

    def write(self, lab: LocalStudio, *sources: str) -> str:
        folder = lab.home / uuid.uuid4().hex[:8]
        folder.mkdir()
        cells = [new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(new_notebook(cells=cells), folder / "work.ipynb")
        return f"{folder.name}/work.ipynb"

    def test_they_have_their_types(self, lab: LocalStudio) -> None:
        parameters = {
            "start": "{{ data_interval_start }}",
            "day": "{{ dag_run.logical_date.date() }}",
            "none": "{{ dag_run.conf.get('limit') }}",
            "span": "{{ data_interval_end - data_interval_start }}",
            "top": "{{ params.top }}",
            "rate": "{{ dag_run.conf.rate }}",
            "zip": "{{ dag_run.conf.zip }}",
            "code": "{{ dag_run.conf.code | pprint }}",
            "params": "{{ params }}",
            "conf": "{{ dag_run.conf }}",
            "mapped": "{{ mapped }}",
            "ds": "{{ ds }}",
        }
        path = self.write(
            lab,
            "; ".join(f"{name} = 0" for name in parameters),
            f"import json\nprint(json.dumps({{n: [type(globals()[n]).__name__, repr(globals()[n])] for n in {[*parameters]}}}))",
        )
        with DAG("typed", schedule=None, start_date=datetime(2026, 1, 1), render_template_as_native_obj=True):
            task = self.operator(lab, path, parameters=parameters)
        task.render_template_fields(context(mapped=Lazy({"name": "a", "sum": 1.5}, {"name": "b", "sum": 2})))
        ti = SimpleNamespace(
            dag_id="typed", task_id="report", run_id="r", map_index=-1, xcom_push=lambda **_: None
        )
        result = task.execute(context_with(ti))
        executed = nbformat.read(lab.home / result["output_path"], as_version=4)
        midnight = "datetime.datetime(2026, 10, 1, 0, 0, tzinfo=datetime.timezone.utc)"
        assert json.loads(executed.cells[2].outputs[0].text) == {
            "start": ["datetime", midnight],
            "day": ["date", "datetime.date(2026, 10, 1)"],
            "none": ["NoneType", "None"],
            "span": ["timedelta", "datetime.timedelta(days=1)"],
            "top": ["int", "3"],
            "rate": ["float", "0.5"],
            "zip": ["str", "'01234'"],
            "code": ["str", "'12345'"],
            "params": [
                "dict",
                "{'top': 3, 'rate': 1.0, 'label': '1_000', 'flag': True, 'none': None, 'tree': {'a': [1, {}]}}",
            ],
            "conf": ["dict", "{'zip': '01234', 'code': '12345', 'items': [1, '2', None], 'rate': 0.5}"],
            "mapped": ["list", "[{'name': 'a', 'sum': 1.5}, {'name': 'b', 'sum': 2}]"],
            "ds": ["str", "'2026-10-01'"],
        }
        assert executed.metadata.papermill.parameters["span"] == 86400.0

    @pytest.mark.parametrize("value", [Decimal("1.5"), uuid.UUID(int=1), b"x", 1j])
    def test_what_has_no_literal_is_refused(self, lab: LocalStudio, value: object) -> None:
        path = self.write(lab, "x = 0")
        ti = SimpleNamespace(dag_id="typed", task_id="report", run_id="r", map_index=-1)
        for parameters in ({"x": value}, {"x": Lazy({"a": value})}):
            with pytest.raises(
                ParameterError, match=f"'x' cannot be written .*{type(value).__name__} has no literal"
            ):
                self.operator(lab, path, parameters=parameters).execute(context_with(ti))
        assert lab.sessions() == []

    def test_runs_whose_names_could_be_taken_for_each_other(self, lab: LocalStudio) -> None:
        """Task ``b.report`` of DAG ``a`` and task ``report`` of DAG ``a.b``, in runs of one schedule."""
        path = self.write(lab, "x = 0", "print(x)")
        outputs = []
        for x, (dag, task) in enumerate([("a", "b.report"), ("a.b", "report"), ("a.b", "report")]):
            ti = SimpleNamespace(dag_id=dag, task_id=task, run_id="scheduled__1", map_index=-1)
            ti.xcom_push = lambda **_: None
            outputs.append(
                self.operator(lab, path, parameters={"x": min(x, 1)}).execute(context_with(ti))["output_path"]
            )
        assert len(set(outputs)) == 2  # the same run again writes to the same place
        texts = [nbformat.read(lab.home / output, as_version=4).cells[2].outputs[0].text for output in outputs]
        assert texts == ["0\n", "1\n", "1\n"]
        assert all(Path(output).parent.name == "work-runs" for output in outputs)


def name(dag: str, task: str, run: str, index: int = -1) -> str:
    return run_name(context_with(SimpleNamespace(dag_id=dag, task_id=task, run_id=run, map_index=index)))


def test_a_runs_name_is_its_own() -> None:
    every = [
        (dag, task, run, index)
        for dag in ("a", "a.b", "a.b.c", "a.0")
        for task in ("c", "b.c", "c.0", "b.c.0", "c.x")
        for run in (
            "r",
            "0",
            "r.0",
            "0.0",
            "x.r",
            "c.r",
            ".r",
            "c.0.r",
            "r/0",
            "c/r",
            "é.r",
            "[0]/r",
            "m:1.5",
            "x/c/r",
        )
        for index in (-1, 0, 1)
    ]
    assert len({name(*one) for one in every}) == len(every)


def test_a_runs_name_reads_well() -> None:
    assert name("sales", "daily.report", "scheduled__2026-10-01T00:00:00+00:00") == (
        "sales.daily.report.scheduled__2026-10-01T00:00:00+00:00"
    )
    assert name("sales", "report", "manual__2026-10-01T00:00:00.123456+00:00", 7) == (
        "sales.report.manual__2026-10-01T00:00:00.123456+00:00.7"
    )
    assert name("team.sales", "report", "r", 7) == "/team.sales/report[7]/r"
