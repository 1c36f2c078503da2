"""The memory of the instance that kernels share: it is visible before it kills, and never in a run's way."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_smstudio.local.gateway import gateway as local_door
from airflow_provider_smstudio.local.transport.http import response
from airflow_provider_smstudio.studio import RunSpec, Studio
from airflow_provider_smstudio.studio.errors import KernelDiedError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.memory import FALL, FIRST, RISE
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.jupyter import instance_meter
from airflow_provider_smstudio.studio.jupyter.rest import JupyterServer
from airflow_provider_smstudio.studio.protocol.instance_metrics import Memory
from airflow_provider_smstudio.studio.runs import worker_loop
from airflow_provider_smstudio.studio.runs.handover import Handover
from airflow_provider_smstudio.studio.runs.log import RunLog
from airflow_provider_smstudio.studio.runs.shared_resources import SharedResources, in_thread
from airflow_provider_smstudio.studio.runs.watcher import NotebookWatcher
from airflow_provider_smstudio.studio.runs.worker_loop import WorkerLoop
from tests.helpers.bench import Bench, both_ways, client_of
from tests.helpers.deferred import begin, plain
from tests.helpers.scripted_gateway import BASE, Answer, Door, data, html, open_door, to

METRICS = "/aws/sagemaker/api/instance/metrics"
GIB = 2**30
WAITS = "import os, time\nwhile not os.path.exists('enough'):\n    time.sleep(0.05)"
"""A cell that ends when there is a file beside its notebook."""


def look_each(seconds: float, patch: pytest.MonkeyPatch) -> None:
    def options(**given: object) -> RunOptions:
        return replace(RunOptions(memory_interval=seconds, check_interval=0.5), **given)  # type: ignore[arg-type]

    patch.setattr("airflow_provider_smstudio.studio.runs.spec.RunOptions", options)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    look_each(0.2, monkeypatch)


@pytest.fixture
def asked(space: Bench) -> Iterator[list[str]]:
    """The paths of the requests for the instance's memory."""
    paths: list[str] = []
    with space.local.on_request(lambda method, path: paths.append(path) if path.endswith(METRICS) else None):
        yield paths


def changes(bench: Bench) -> list[str]:
    return [event.change for event in bench.of_type(ev.InstanceMemory)]


@both_ways
@pytest.mark.usefixtures("quick")
def test_a_warning_for_each_threshold_and_an_end_to_it(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = space.local.switches
    monkeypatch.setattr(switches, "memory_percent", 50.0)
    following = iter([91.0, 97.0, 30.0])
    lines: list[tuple[int, str]] = []
    live = RunLog(lambda level, line: lines.append((level, line)))

    def listener(event: ev.Event) -> None:
        space.listen(event)
        live(event)
        if isinstance(event, ev.InstanceMemory):
            percent = next(following, None)
            if percent is None:
                (space.path / "enough").touch()
            else:
                switches.memory_percent = percent

    space.run_spec(RunSpec(space.write(WAITS)), listener)
    assert changes(space) == [FIRST, RISE, RISE, FALL]
    first, warning, second, _ = (event.reading for event in space.of_type(ev.InstanceMemory))
    assert [first.kernels, warning.kernels, second.kernels] == [None, 1, 1]
    told = [(level, line) for level, line in lines if "instance's memory" in line.lower()]
    assert [level for level, _ in told] == [logging.INFO, logging.WARNING, logging.WARNING, logging.INFO]
    assert "(91 %), 1 kernel on it. When it is full, kernels are killed." in told[1][1]
    space.assert_clean()


@both_ways
@pytest.mark.usefixtures("quick")
def test_a_killed_kernels_error_names_the_memory(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = space.local.switches
    monkeypatch.setattr(switches, "memory_percent", 50.0)
    last_begin = ev.Reattached if space.deferred else ev.CellStarted

    def fill() -> None:
        switches.memory_percent = 97.0

    def kill() -> None:
        (kernel,) = space.local.kernels()
        space.local.kill_kernel(kernel["id"])

    space.once(last_begin, fill)

    def listener(event: ev.Event) -> None:
        if isinstance(event, ev.InstanceMemory) and event.change == RISE:
            space.once(ev.InstanceMemory, kill)
        space.listen(event)

    words = r"the instance's memory was 97 % full \d+ s before\. Its variables are gone"
    with pytest.raises(KernelDiedError, match=words) as caught:
        space.run_spec(RunSpec(space.write(WAITS)), listener)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    saved = space.executed(caught.value.output_path or "").metadata["smstudio"]["run"]
    assert saved["error"]["message"] == str(caught.value)
    space.assert_clean()


@both_ways
@pytest.mark.usefixtures("quick")
def test_where_nothing_tells_it_is_asked_once_and_nothing_is_said(
    space: Bench, asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(space.local.switches, "instance_metrics", False)
    caplog.set_level(logging.INFO)
    space.run(space.write("import time; time.sleep(1.5)"))
    clients = 2 if space.deferred else 1  # the worker's part may be too short to ask
    assert 1 <= len(asked) <= clients
    assert changes(space) == []
    assert "memory" not in caplog.text
    assert "metrics" not in caplog.text


@both_ways
@pytest.mark.usefixtures("quick")
def test_classic_is_never_asked(local_studio_classic: Any, make_bench: Callable[[Any], Bench]) -> None:
    bench = make_bench(local_studio_classic)
    paths: list[str] = []
    with bench.local.on_request(lambda method, path: paths.append(path)):
        bench.run(bench.write("import time; time.sleep(1)"))
    assert paths
    assert [path for path in paths if "metrics" in path] == []
    assert changes(bench) == []


@both_ways
@pytest.mark.usefixtures("quick")
def test_an_endpoint_that_never_answers_holds_nobody_up(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_meter, "_TIMEOUT", 120.0)
    began = time.monotonic()
    with space.local.hold("GET", METRICS) as held:
        space.run(space.write("import time; time.sleep(1.5)", "print('through')"))
        assert held.requests
        assert time.monotonic() - began < 60
    assert changes(space) == []
    assert space.executed().cells[1].outputs[0]["text"] == "through\n"
    space.assert_clean()


ODD: dict[str, bytes] = {
    "forbidden": response(403, "<html>403 Forbidden</html>"),
    "page": response(200, "<html>Loading</html>"),
    "failed": response(200, '{"metrics": {"memory": {}}}', "application/json"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.usefixtures("quick")
def test_odd_answers_are_not_noticed(
    space: Bench, asked: list[str], odd: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_door, "metrics_answer", lambda percent: ODD[odd])
    caplog.set_level(logging.INFO)
    logins: list[int] = []
    space.once(ev.CellStarted, lambda: logins.append(space.studio.session.logins))
    space.run(space.write("import time; time.sleep(1)"))
    assert len(asked) == 1  # and then not for minutes
    assert changes(space) == []
    assert logins == [space.studio.session.logins]  # a 403 there does not mean that the login has ended
    assert "metrics" not in caplog.text


def test_runs_of_one_event_loop_share_a_reading(
    space: Bench, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_each(900.0, monkeypatch)
    monkeypatch.setattr(instance_meter, "MAX_AGE", 600.0)
    monkeypatch.setattr(worker_loop, "look", lambda *_: [])  # only watchers are meant
    handovers: list[Handover] = []
    for number in range(3):
        spec = RunSpec(space.write(WAITS, name=f"{number}.ipynb"), run_key=f"{space.folder}-{number}")
        begun = begin(space, spec, lambda event: None)
        assert isinstance(begun, Handover)
        handovers.append(plain(begun))

    def listener(event: ev.Event) -> None:
        space.listen(event)
        if changes(space).count(FIRST) == len(handovers):
            (space.path / "enough").touch()

    async def make() -> Studio:
        return await in_thread(None, client_of, space.local)

    async def watch_one(resources: SharedResources, handover: Handover) -> None:
        async with resources.studio("one", make) as shared:
            watcher = NotebookWatcher(resources, shared, handover, listener=listener)
            try:
                await watcher.watch()
            finally:
                await watcher.leave()

    async def watch_all() -> None:
        async with SharedResources.use() as resources:
            await asyncio.gather(*(watch_one(resources, handover) for handover in handovers))

    asyncio.run(watch_all())
    assert changes(space) == [FIRST] * len(handovers)
    assert len(asked) == 1
    space.assert_clean()


# --- One server's readings


@pytest.fixture
def door() -> Iterator[Door]:
    for door in open_door():
        door.answers = {
            "/auth": to(f"{BASE}/lab", {"Set-Cookie": "_xsrf=value; Path=/"}),
            f"{BASE}/lab": html(),
            f"{BASE}/api/kernels": data([]),
        }
        yield door


def server_of(door: Door) -> JupyterServer:
    session = door.session()
    session.renew()
    return JupyterServer(session)


def told(percent: object) -> Answer:
    memory = {"rss_in_bytes": 4 * GIB, "total_in_bytes": 16 * GIB, "memory_percentage": percent}
    return data({"metrics": {"memory": memory}})


def test_kernels_are_counted_only_for_a_warning(door: Door) -> None:
    server = server_of(door)
    kernels = door.count(f"{BASE}/api/kernels")
    door.answers[BASE + METRICS] = [told(30.0), told(80.0), told(80.0)]
    first = server.meter.read()
    assert first is not None
    assert (first.memory, first.kernels) == (Memory(30.0, 4.0 * GIB, 16.0 * GIB), None)
    assert door.count(f"{BASE}/api/kernels") == kernels
    door.answers[f"{BASE}/api/kernels"] = data([{"id": "a"}, {"id": "b"}])
    second = server.meter.read()
    assert second is not None
    assert (second.memory, second.kernels) == (Memory(80.0), 2)
    door.answers[f"{BASE}/api/kernels"] = html(status=403)
    third = server.meter.read()
    assert third is not None
    assert third.kernels is None
    server.session.close()


@pytest.mark.parametrize(
    ("answer", "asked_again"),
    [
        (html(status=404), False),
        (data({"message": "Not Found"}, 404), False),
        (html(status=403), True),
        (to("http://localhost:1/signin"), True),
        (html(status=502), True),
        (html(), True),
        (data([1, 2]), True),
        (data(None), True),
        (data({"error": "No parent process found"}, 500), True),
        ((200, {"Content-Type": "application/json"}, "[" * 100_000), True),
        ((200, {"Content-Encoding": "gzip"}, "no gzip"), True),
        (told("25"), False),
    ],
)
def test_how_often_it_is_asked(
    door: Door, answer: Answer, asked_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(door)
    door.answers[BASE + METRICS] = answer
    understood = "rss_in_bytes" in answer[2]  # the bytes alone tell
    monkeypatch.setattr(instance_meter, "_PAUSE", 3600.0)
    for _ in range(3):
        assert (server.meter.read() is not None) is understood
    assert door.count(BASE + METRICS) == (3 if understood else 1)
    server.session.renew()  # perhaps to an app of another image
    assert (server.meter.read() is not None) is understood
    assert door.count(BASE + METRICS) == (4 if understood else 2)
    monkeypatch.setattr(instance_meter, "_PAUSE", 0.0)
    server.session.renew()
    server.meter.read()
    server.meter.read()
    assert door.count(BASE + METRICS) == (6 if understood else 4 if asked_again else 3)
    assert door.count("/auth") == 3  # none but ours
    server.session.close()


def test_no_answer_at_all(door: Door) -> None:
    server = server_of(door)
    server.session._origin = "http://127.0.0.1:1"
    assert server.meter.read() is None
    server.session.close()


def test_nobody_logs_in_for_it(door: Door) -> None:
    server = JupyterServer(door.session())
    assert server.meter.read() is None
    assert door.asked == []


def test_readings_in_the_background(door: Door) -> None:
    meter = server_of(door).meter
    door.answers[BASE + METRICS] = told(25.0)
    waiting: list[Callable[[], None]] = []
    now = time.monotonic()
    assert meter.newest(now, waiting.append) is None
    assert meter.newest(now + 100, waiting.append) is None  # one is under way
    (work,) = waiting
    work()
    found = meter.newest(now + 1, waiting.append)
    assert found is not None
    assert found.memory.percent == 25.0
    assert len(waiting) == 1
    assert meter.newest(found.at + 19.9, waiting.append) is found
    assert len(waiting) == 1
    assert meter.newest(found.at + 20.1, waiting.append) is None
    assert len(waiting) == 2
    meter._session.close()


def test_without_threads_there_are_no_readings(door: Door) -> None:
    meter = server_of(door).meter
    tried: list[object] = []

    def begin(work: object) -> None:
        tried.append(work)
        raise RuntimeError("cannot schedule new futures after shutdown")

    assert meter.newest(100.0, begin) is None
    assert meter.newest(119.0, begin) is None
    assert len(tried) == 1  # a while ago
    assert meter.newest(120.0, begin) is None
    assert len(tried) == 2
    meter._session.close()


def test_what_is_handed_over_says_what_the_log_has(space: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    look_each(0.2, monkeypatch)
    monkeypatch.setattr(space.local.switches, "memory_percent", 85.0)
    loops: list[WorkerLoop] = []
    drive = WorkerLoop.drive

    def driven(loop: WorkerLoop, run: NotebookRun) -> None:
        loops.append(loop)
        drive(loop, run)

    monkeypatch.setattr(WorkerLoop, "drive", driven)

    def listener(event: ev.Event) -> None:
        space.listen(event)
        if isinstance(event, ev.InstanceMemory):
            loops[0]._hand_over_at = 0.0  # now

    spec = RunSpec(space.write(WAITS), run_key=space.folder)
    worker = space.studio.runner(spec, listener=listener)
    handover = worker.run_or_hand_over(120)
    assert isinstance(handover, Handover)
    assert changes(space) == [RISE]
    assert handover.memory_level == 80.0
    fields = handover.as_dict()
    del fields["memory_level"]  # of a trigger that was begun before there was such a thing
    assert Handover.from_dict(json.loads(json.dumps(fields))).memory_level is None
    space.studio.server.delete_session(handover.session_id)
