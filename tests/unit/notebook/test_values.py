"""Values that a notebook hands to whoever runs it."""

from __future__ import annotations

import pytest
from nbformat.v4 import new_output

from airflow_provider_smstudio.studio.errors import HandedValueError
from airflow_provider_smstudio.studio.notebook import values
from airflow_provider_smstudio.studio.runs import saved_run
from tests.helpers import messages as m
from tests.helpers.run_driver import Driver


def display(data, metadata=None):
    return new_output("display_data", data, metadata=metadata or {})


def named(name, value):
    return display({"application/json": value}, {"smstudio": {"name": name}})


@pytest.mark.parametrize("value", [1204, "text", None, True, 1.5, [1, 2], {"a": {"b": []}}])
def test_our_own_form(value):
    assert values.values_of(named("orders", value)) == {"orders": value}


def test_of_scrapbook():
    scrap = {"name": "orders", "data": {"n": 1}, "encoder": "json", "version": 1}
    shown = display({"application/scrapbook.scrap.json+json": scrap}, {"scrapbook": {"name": "orders"}})
    assert values.values_of(shown) == {"orders": {"n": 1}}
    text = {**scrap, "data": "many", "encoder": "text"}
    assert values.values_of(display({"application/scrapbook.scrap.text+json": text})) == {"orders": "many"}


def test_of_papermill():
    assert values.values_of(display({"application/papermill.record+json": {"a": 1, "b": 2}})) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "output",
    [
        display({"application/json": {"a": 1}}),
        display({"text/plain": "1"}, {"smstudio": {"name": "a"}}),
        display({"application/json": 1}, {"smstudio": "a"}),
        display({"application/scrapbook.scrap.json+json": "?"}),
        new_output("stream", name="stdout", text="a"),
    ],
)
def test_what_is_none(output):
    assert values.values_of(output) == {}


def test_the_later_of_two_counts():
    assert values.add({"a": 1, "b": 2}, {"a": 3}, "cell 1/1") == {"a": 3, "b": 2}


@pytest.mark.parametrize("name", ["", "return_value", "_link_x", "a b", "1a", "x" * 129, "skipmixin_key", "a;b"])
def test_names_that_cannot_be(name):
    with pytest.raises(HandedValueError, match="cell 2/3 publishes a value under the name") as caught:
        values.add({}, {name: 1}, "cell 2/3")
    assert caught.value.value_name == name


def test_what_is_no_json():
    with pytest.raises(HandedValueError, match="publishes 'a', which is not JSON"):
        values.add({}, {"a": float("nan")}, "cell 1/1")


def test_too_much():
    known = values.add({}, {"a": "x" * 40_000}, "cell 1/2")
    with pytest.raises(
        HandedValueError, match="with 'b' of cell 2/2, the values .* have 59 KiB; the limit is 48 KiB"
    ):
        values.add(known, {"b": "x" * 20_000}, "cell 2/2")


def shows(name, value):
    def make(request):
        content = {"data": {"application/json": value}, "metadata": {"smstudio": {"name": name}}, "transient": {}}
        return m.message("display_data", content, request)

    return make


class TestInARun:
    def test_they_are_kept_with_the_run(self):
        driver = Driver("a", "b").ready()
        driver.succeed(shows("orders", 1), shows("rows", [1]))
        driver.succeed(shows("orders", 2), count=2)
        assert driver.run.finished
        assert saved_run.values_of(driver.notebook) == {"orders": 2, "rows": [1]}

    def test_too_much_ends_the_run(self):
        driver = Driver("a", "b").ready()
        driver.succeed(shows("orders", "x" * 50_000))
        assert type(driver.error) is HandedValueError
        assert driver.statuses() == ["failed", "pending"]

    def test_of_a_failed_cell_nothing_is_taken(self):
        driver = Driver("a").ready()
        driver.feed(shows("orders", 1)(driver.request))
        driver.fail()
        assert saved_run.values_of(driver.notebook) == {}

    def test_what_an_earlier_process_has_heard_counts(self):
        driver = Driver("a", "b", record=True).recording()
        driver.feed(m.busy(driver.request), shows("orders", 1)(driver.request))
        notebook = driver.run.snapshot(driver.now)
        after = Driver(notebook=notebook, resumed=True, unbroken=True, record=True)
        after.start()
        after.feed(m.reply_ok(driver.request), m.idle(driver.request))
        assert saved_run.values_of(after.notebook) == {"orders": 1}
