"""A Jupyter server with one kernel, and a worker before it, in memory and on a clock of its own.

What a seed throws at a run: connections that break and lose what is under way in both directions, with and
without a server that keeps what comes meanwhile; requests that such a connection had taken and that reach the kernel
later, behind those of the next one; kernels that leave requests unread until the next connection; the server's
rate limit; workers that die, at any moment, and are followed by another one.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter, deque
from copy import deepcopy
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from nbformat import NotebookNode

from airflow_provider_smstudio.studio.errors import ConnectionLostError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.protocol.kernel_record import HOUSEKEEPING
from airflow_provider_smstudio.studio.protocol.kernel_record_source import Record, Recorder
from airflow_provider_smstudio.studio.runs import identity, saved_run
from tests.helpers import messages as m
from tests.helpers.run_driver import STARTED_AT, code, prepared

SESSION = "my-session"
WHO = identity.Identity("0" * 32, "run")


def pack(value):
    return json.dumps(value).encode()


class Clock:
    """Virtual time: what is to happen, in order."""

    def __init__(self):
        self.now = 0.0
        self._numbers = itertools.count()
        self._plan = []

    def at(self, moment, call, *arguments):
        heapq.heappush(self._plan, (max(moment, self.now), next(self._numbers), call, arguments))

    def after(self, seconds, call, *arguments):
        self.at(self.now + seconds, call, *arguments)

    @property
    def next_at(self):
        return self._plan[0][0] if self._plan else float("inf")

    def step(self):
        moment, _, call, arguments = heapq.heappop(self._plan)
        self.now = moment
        call(*arguments)


def hooks():
    """The record's hooks on a kernel that sends nothing itself."""
    unused = SimpleNamespace(_really_send=print, schedule=print, send=print, pack=pack)
    kernel = SimpleNamespace(session=unused, iopub_thread=unused, should_handle=lambda *request: True)
    return Recorder(SimpleNamespace(kernel=kernel, set_parent=lambda parent: None))


class Kernel:
    """Runs requests one after the other; with ``keeps`` it is IPython's kernel, which can keep a record.

    A cell's source is JSON: its name, its lines, its seconds, whether it fails.
    """

    def __init__(self, world, *, keeps, limit, counts, wedges, tells_aside):
        self.world, self.clock, self.random = world, world.clock, world.random
        self.keeps, self.limit, self.counts, self.wedges = keeps, limit, counts, wedges
        self.tells_aside = (
            tells_aside  # whether it is idle after a request that it does not handle; ipykernel 6 not
        )
        self.queue: deque[Any] = deque()
        self.busy = self.wedged = False
        self.count = 0
        self.ran: Counter[str] = Counter()
        self.hooks = hooks()
        self.record = None

    def take(self, message):
        if message["channel"] == "control":
            self.world.deliver(m.message("kernel_info_reply", {"status": "ok"}, message, channel="control"))
            return
        self.queue.append(message)
        self.read()

    def connected(self):
        self.wedged = False
        self.read()

    def read(self):
        if self.busy or self.wedged or not self.queue:
            return
        self.busy = True
        message = self.queue.popleft()
        self.publish(m.busy(message))
        if self.record is not None and not self.hooks._on_request(None, message, []):
            self.world.note("     the kernel puts aside", message["header"]["msg_id"])
            self.done(message, told=self.tells_aside)
        elif m.is_cell(message):
            self.begin(message)
        else:
            self.clock.after(0.001, self.answer, message)

    def begin(self, message):
        cell = json.loads(message["content"]["code"])
        self.world.note("     the kernel runs", message["header"]["msg_id"])
        self.ran[cell["name"]] += 1
        self.count += 1
        if self.record is not None:
            self.record.on_input(message["header"]["msg_id"], message["metadata"])
        self.publish(m.execute_input(message, self.count))
        for number in range(cell["lines"]):
            moment = self.clock.now + cell["seconds"] * (number + 1) / (cell["lines"] + 1)
            self.clock.at(moment, self.publish, m.stream(message, line(cell["name"], number)))
        self.clock.after(cell["seconds"], self.finish, message, cell["fails"])

    def finish(self, message, fails):
        count = self.count if self.counts else 0
        if fails:
            self.publish(m.error(message))
        self.reply(m.reply_error(message, count=count) if fails else m.reply_ok(message, count))
        aborts = fails and message["content"]["stop_on_error"]
        self.done(message)
        while aborts and self.queue:
            put_aside = self.queue.popleft()
            self.publish(m.busy(put_aside))
            self.reply(m.reply_aborted(put_aside))
            self.publish(m.idle(put_aside))

    def answer(self, message):
        asked, *rest = m.question(message).split()
        count = self.count if self.counts else 0
        if asked == "info":
            made = m.kernel_info_reply(message)
            if not self.keeps:
                made["content"]["implementation"] = "other"
            self.reply(made)
        elif asked == "count":
            self.reply(m.reply_ok(message, count))
        elif not self.keeps:
            self.reply(m.reply_ok(message, count))  # it knows no expressions
        elif asked == "install":
            resumed = self.record is not None
            if not resumed:
                self.record = self.hooks.record = Record(SESSION, self.limit)
                self.record.admit(SESSION, self.limit)
            self.reply(m.installed(message, resumed=resumed))
        elif self.record is None:
            self.reply(m.no_record(message))
        elif asked == "state":
            text = self.record.state(int(rest[0]), self.random.choice([1, 600, 10**6]))
            self.reply(m.recorded(message, text[:-1] + f', "count": {self.count + 1}}}'))
        elif asked == "refuse":
            self.reply(m.recorded(message, self.record.refuse(rest[0])))
        else:
            self.reply(
                m.recorded(message, self.record.fetch(rest[0], int(rest[1]), self.random.choice([1, 10**6])))
            )
        self.done(message)

    def done(self, message, *, told=True):
        if told:
            self.publish(m.idle(message))
        self.busy = False
        self.wedged = self.random.random() < self.wedges
        self.clock.after(0.0005, self.read)

    def publish(self, message):
        if self.record is not None:
            parts = [message["header"], message["parent_header"], message["metadata"], message["content"]]
            self.record.on_wire([b"topic", b"<IDS|MSG>", b"signature", *map(pack, parts)])
        self.world.deliver(message)

    def reply(self, message):
        parent = message["parent_header"]["msg_id"]
        if self.record is not None and HOUSEKEEPING not in parent:
            self.record.on_reply(parent, message["header"], message["content"])
        self.world.deliver(message)


def line(name, number):
    return f"{name}:{number}\n"


class Server:
    """The way between worker and kernel; each way keeps its order, in each channel of each connection.

    With ``late``, what a connection had taken when it was cut reaches the kernel so many seconds later.
    """

    def __init__(self, world, *, replays, limits, late):
        self.world, self.clock, self.random = world, world.clock, world.random
        self.replays, self.limits, self.late = replays, limits, late
        self.late_until = 0.0
        self.taken = set()
        self.strangers: frozenset[str] = frozenset()
        self.open = False
        self.noticed = True
        self.generation = 0
        self.kept = []
        self.under_way = []
        self.latest: Counter[tuple[str, str]] = Counter()
        self.dropping = 0

    def connect(self, *, fresh=False):
        if fresh:  # replies to what was sent before go nowhere
            self.strangers = frozenset(self.taken)
            self.kept = [message for message in self.kept if message["channel"] == "iopub"]
        self.generation += 1
        self.open = self.noticed = True
        self.latest.clear()
        self.under_way.clear()
        waiting, self.kept = self.kept, []
        for message in waiting:
            self.to_worker(message)
        self.world.kernel.connected()

    def cut(self):
        """Break the connection; the server and the worker find out later, each by itself."""
        self.generation += 1
        self.open, self.noticed = False, False
        self.clock.after(self.random.choice([0, 0.1, 3]), self.notice, self.generation)
        waiting, self.under_way = self.under_way, []
        for towards, message in waiting:
            if towards == "kernel":
                self.stray(message)

    def stray(self, message):
        """Let a request out of a connection that was cut arrive all the same, behind those of the next one."""
        if self.late is not None:
            self.late_until = max(self.late_until, self.clock.now + self.late * self.random.uniform(0.5, 1))
            self.clock.at(self.late_until, self.arrive_late, message)

    def arrive_late(self, message):
        self.world.note("     arrives late:", self.world.name(message))
        self.world.kernel.take(message)

    def notice(self, generation):
        if generation == self.generation:
            self.noticed = True

    def hand_over(self):
        """Close in order: all that is under way arrives."""
        waiting, self.under_way = self.under_way, []
        self.generation += 1
        received = []
        for towards, message in waiting:
            if towards == "kernel":
                self.world.kernel.take(message)
            else:
                received.append(message)
        return received

    def to_worker(self, message):
        if message["channel"] != "iopub" and message["parent_header"].get("msg_id") in self.strangers:
            return
        if not self.open:
            if self.noticed and self.replays:
                self.kept.append(message)
            return
        for passed in self.limited(message):
            self.send("worker", passed, self.world.receive)

    def limited(self, message):
        """Drop some output now and then, and put the server's notice in its place."""
        if message["header"]["msg_type"] != "stream":
            self.dropping *= message["header"]["msg_type"] != "status"
            return [message]
        if self.dropping:
            self.dropping -= 1
            return []
        if self.random.random() < self.limits:
            self.dropping = self.random.randrange(3)
            return [m.rate_notice({"header": message["parent_header"]})]
        return [message]

    def to_kernel(self, message):
        self.taken.add(message["header"]["msg_id"])
        if self.open:
            self.send("kernel", message, self.world.kernel.take)
        else:
            self.stray(message)

    def send(self, towards, message, arrive):
        entry = (towards, message)
        way = (towards, message["channel"])
        moment = max(self.latest[way], self.clock.now + self.random.choice([0, 0.001, 0.01, 0.2]))
        self.latest[way] = moment
        self.under_way.append(entry)
        self.clock.at(moment, self.arrive, self.generation, entry, arrive)

    def arrive(self, generation, entry, arrive):
        if generation == self.generation:
            self.under_way.remove(entry)
            arrive(entry[1])


class Died(Exception):  # no error: it happens
    """The worker is gone."""


class World:
    """All of it, and what a seed makes of it."""

    def __init__(self, seed, *, keeps=True, limit=10**9, counts=True, deaths=True, options=None):
        self.random = random.Random(seed)
        self.clock = Clock()
        chance = self.random.choice
        self.trace = []
        self.kernel = Kernel(
            self,
            keeps=keeps,
            limit=limit,
            counts=counts,
            wedges=chance([0, 0, 0.1, 0.3]),
            tells_aside=chance([False, True]),
        )
        self.server = Server(
            self,
            replays=chance([False, True]),
            limits=chance([0, 0, 0.2]) if keeps else 0,
            late=chance([None, 0.1, 1, 10]) if keeps else None,  # only a record can tell
        )
        self.cells = [self.make_cell(number) for number in range(self.random.randint(1, 6))]
        tags = [["raises-exception"] if cell["fails"] == "tolerated" else [] for cell in self.cells]
        sources = [code(json.dumps(cell), *tag) for cell, tag in zip(self.cells, tags, strict=True)]
        self.prepared = prepared(*sources)
        saved_run.begin(self.prepared, WHO, "digest")
        self.options = RunOptions(**{"reconnect_timeout": 10**6, **(options or {})})
        self.disk: NotebookNode
        self.announced = None
        self.incarnation = 0
        self.saving = False
        self.shown = []
        self.link_up = False
        self.run: NotebookRun  # made by each begin()
        seconds = sum(cell["seconds"] for cell in self.cells) + 2
        for _ in range(self.random.choice([0, 1, 2, 4, 8])):
            kinds = [self.break_link, self.break_link, self.break_link, self.reopen]
            kinds += [self.die] if deaths else []
            self.clock.at(self.random.uniform(0, seconds * 1.5), self.random.choice(kinds))

    def make_cell(self, number):
        fails = self.random.choice([False, False, False, False, "tolerated", "ends"])
        return {
            "name": f"c{number}",
            "lines": self.random.choice([0, 1, 3, 8]),
            "seconds": self.random.choice([0, 0.01, 0.5, 3, 12, 90]),
            "fails": fails,
        }

    # --- The worker

    def play(self):
        """Run the notebook to its end; return the run."""
        self.begin(resumed=False)
        while not self.run.finished:
            deadline = self.run.next_deadline()
            try:
                if deadline is not None and deadline - self.zero <= self.clock.next_at:
                    self.clock.now = max(self.clock.now + 0.0001, deadline - self.zero)
                    self.carry_out(self.run.tick(self.worker_now))
                else:
                    assert self.clock.next_at < float("inf"), "nothing would ever happen again"
                    self.clock.step()
            except Died:
                self.begin(resumed=True)
            assert self.clock.now < 20_000, "the run does not end"
        return self.run

    def begin(self, *, resumed):
        self.zero = self.random.uniform(0, 10**6)  # each worker has a clock of its own
        self.incarnation += 1
        self.saving, self.shown, self.link_up = False, [], True
        notebook = deepcopy(self.prepared)
        if resumed:
            self.note("worker", self.incarnation, "announced", self.announced)
            saved_run.take_over(notebook, deepcopy(self.disk))
        self.run = NotebookRun(
            notebook,
            session_id=SESSION,
            options=self.options,
            now=self.worker_now,
            started_at=STARTED_AT + timedelta(seconds=self.clock.now),
            resumed=resumed,
            announced=self.announced if resumed else None,
        )
        if not resumed:
            self.disk = deepcopy(self.run.snapshot(self.worker_now))
        self.server.connect()
        self.carry_out(self.run.start(self.worker_now))

    @property
    def worker_now(self):
        return self.zero + self.clock.now

    def note(self, *what):
        self.trace.append(f"{self.clock.now:10.4f} " + " ".join(map(str, what)))

    def receive(self, message):
        shown = message["content"].get("text") or message["content"].get("execution_state") or ""
        parent = message["parent_header"].get("msg_id", "")[-12:]
        self.note("  <-", message["channel"], message["header"]["msg_type"], parent, repr(shown[:20]))
        if self.link_up:
            self.carry_out(self.run.receive(message, self.worker_now))

    def deliver(self, message):
        self.server.to_worker(message)

    def carry_out(self, events):
        for event in events:
            if isinstance(event, ev.Send):
                assert self.link_up, "sent while the link is down"
                self.note("->", event.message["channel"], self.name(event.message))
                self.server.to_kernel(event.message)
                continue
            self.note("  *", type(event).__name__, getattr(event, "reason", ""), getattr(event, "error", ""))
            if isinstance(event, ev.CheckKernel):
                self.carry_out(self.run.kernel_state("busy" if self.kernel.busy else "idle", self.worker_now))
            elif isinstance(event, ev.Announce):
                self.announced = event.cell.index
            elif isinstance(event, ev.Reconnect):
                self.reconnect(orderly=event.orderly, fresh=event.fresh)
            elif isinstance(event, ev.Save):
                self.save(required=event.required)
            elif isinstance(event, ev.CellOutput) and event.output["output_type"] == "stream":
                self.shown.append(event.output["text"])

    @staticmethod
    def name(message):
        if m.is_cell(message) or message["channel"] == "control":
            return message["header"]["msg_id"][-12:]
        return f"{m.question(message)} ({message['header']['msg_id'][-12:]})"

    def save(self, *, required):
        if required:
            self.disk = deepcopy(self.run.snapshot(self.worker_now))
        elif self.saving:
            self.run.postpone_save(self.worker_now)
        else:
            self.saving = True
            seconds = self.random.choice([0, 0.01, 2])
            written = deepcopy(self.run.snapshot(self.worker_now))
            self.clock.after(seconds, self.saved, self.incarnation, written, seconds)

    def saved(self, incarnation, written, seconds):
        if incarnation == self.incarnation and not self.run.finished:
            self.saving, self.disk = False, written
            self.run.saved(self.worker_now, seconds, 1000)

    def reconnect(self, *, orderly, fresh=False):
        if orderly:
            assert self.link_up
            if self.server.open:
                received = self.server.hand_over()
                self.server.connect(fresh=fresh)
                for message in received:
                    self.receive(message)
                self.carry_out(self.run.reconnected(self.worker_now, orderly=not fresh))
            else:  # it broke, and is found out now
                self.lose(self.server.generation)
            return
        assert not self.link_up
        if self.random.random() < 0.3:
            self.carry_out(self.run.disconnected(ConnectionLostError("refused"), self.worker_now))
            return
        self.server.connect()
        self.link_up = True
        self.carry_out(self.run.reconnected(self.worker_now))

    # --- What happens to it

    def break_link(self):
        if self.server.open:
            self.note("=== the connection breaks")
            self.server.cut()
            self.clock.after(self.random.choice([0, 0.05, 4]), self.lose, self.server.generation)

    def lose(self, generation):
        if generation == self.server.generation and self.link_up:
            self.link_up = False
            self.carry_out(self.run.disconnected(ConnectionLostError("broken"), self.worker_now))

    def reopen(self):
        """What ``_reopen`` does, at any moment."""
        if self.server.open:
            self.note("=== reopened in order")
            self.reconnect(orderly=True)

    def die(self):
        if self.run.finished:
            return
        self.note("=== the worker dies")
        self.server.cut()
        raise Died

    # --- What is in the notebook in the end

    def written(self, index):
        outputs = self.run.notebook.cells[index].outputs
        return "".join(output["text"] for output in outputs if output["output_type"] == "stream")

    def expected(self, index):
        cell = self.cells[index]
        return "".join(line(cell["name"], number) for number in range(cell["lines"]))

    @property
    def last(self):
        """Index of the cell that ends the run."""
        ends = [index for index, cell in enumerate(self.cells) if cell["fails"] == "ends"]
        return ends[0] if ends else len(self.cells) - 1
