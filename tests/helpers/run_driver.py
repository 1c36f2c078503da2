"""Drives a NotebookRun with literal messages and a clock of its own, as a driver with a websocket would."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timezone

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from airflow_provider_smstudio.studio.errors import ConnectionLostError
from airflow_provider_smstudio.studio.execution import events as ev
from airflow_provider_smstudio.studio.execution.options import RunOptions
from airflow_provider_smstudio.studio.execution.run import NotebookRun
from airflow_provider_smstudio.studio.notebook import document as nb
from airflow_provider_smstudio.studio.protocol.kernel_record import HOUSEKEEPING
from tests.helpers import messages as m

STARTED_AT = datetime(2026, 11, 6, 7, tzinfo=timezone.utc)
BROKEN = ConnectionLostError("the kernel's websocket broke")


def code(source, *tags, **kwargs):
    return new_code_cell(source, metadata={"tags": list(tags)}, **kwargs)


def prepared(*cells):
    """A notebook that is about to run."""
    notebook = new_notebook(cells=[code(cell) if isinstance(cell, str) else cell for cell in cells])
    nb.begin_metadata(notebook, parameters={}, input_path="a", output_path="b", version="1")
    return notebook


def kinds(events):
    """Name the events, but those that kernels without a record bring before each request."""
    return [type(event).__name__ for event in events if not isinstance(event, ev.Announce)]


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


class Driver:
    """A run and all that it asked for: sent messages, saved notebooks, events.

    The kernel is of the kind that keeps no record, unless ``record`` says else; requests that it leaves unheard
    are nobody's concern, unless ``unheard_limit`` says else.
    """

    def __init__(
        self,
        *cells,
        where="ml.t3.medium",
        save_seconds=0.0,
        notebook=None,
        resumed=False,
        announced=None,
        unbroken=False,
        shown=0,
        now=1000.0,
        started_at=STARTED_AT,
        **options,
    ):
        self.notebook = prepared(*cells) if notebook is None else notebook
        self.now = now
        self.save_seconds = save_seconds
        chosen = {"heartbeat_interval": 10**9, "record": False, "unheard_limit": 10**9, **options}
        self.run = NotebookRun(
            self.notebook,
            session_id="my-session",
            options=RunOptions(**chosen),
            now=self.now,
            started_at=started_at,
            where=where,
            resumed=resumed,
            announced=announced,
            unbroken=unbroken,
            shown=shown,
        )
        self.events: list[ev.Event] = []
        self.sent: list[dict] = []
        self.saved: list[NotebookNode] = []

    # --- What happens

    def start(self):
        return self.take(self.run.start(self.now))

    def ready(self):
        """Start, and let the kernel answer; the cell that then runs is saved at once."""
        self.start()
        self.feed(m.busy(self.probe), m.kernel_info_reply(self.probe), m.idle(self.probe))
        if not self.run.finished:
            assert kinds(self.after(0)) == ["Save"]
        return self

    def recording(self):
        """The same with a kernel that keeps a record."""
        self.start()
        self.answer(m.kernel_info_reply)
        self.answer(m.installed)
        if not self.run.finished:
            assert kinds(self.after(0)) == ["Save"]
        return self

    def feed(self, *messages):
        return [event for message in messages for event in self.take(self.run.receive(message, self.now))]

    def answer(self, make, *arguments, **fields):
        """Let the kernel answer the question that was asked last."""
        question = self.probe
        return self.feed(m.busy(question), make(question, *arguments, **fields), m.idle(question))

    def cut(self):
        """Break the connection."""
        return self.take(self.run.disconnected(BROKEN, self.now))

    def restore(self, **about):
        """Let the try to connect succeed."""
        return self.take(self.run.reconnected(self.now, **about))

    def reconnect(self):
        """Break the connection and make it again at once."""
        return [*self.cut(), *self.after(0), *self.restore()]

    def after(self, seconds):
        """Let time pass, then tick once; what is due later must lie ahead, or a driver would spin."""
        self.now += seconds
        events = self.take(self.run.tick(self.now))
        deadline = self.run.next_deadline()
        if not only(events, ev.Reconnect):  # which a driver answers before it waits
            assert deadline is None or deadline > self.now
            assert self.run.finished == (deadline is None)
        return events

    def until_finished(self, limit=50):
        """Tick at each deadline, without any message, until the run ends."""
        events = []
        while not self.run.finished:
            limit -= 1
            assert limit, "the run does not end"
            events += self.after(self.run.next_deadline() - self.now)
        return events

    def take(self, events):
        assert not (self.events and isinstance(self.events[-1], ev.Finished) and events), "events after Finished"
        for event in events:
            self.events.append(event)
            if isinstance(event, ev.Send):
                self.sent.append(event.message)
            elif isinstance(event, ev.Save):
                self.saved.append(deepcopy(self.run.snapshot(self.now)))
                self.now += self.save_seconds
                self.run.saved(self.now, self.save_seconds)
        return events

    # --- A cell

    def succeed(self, *outputs, count=1):
        """Let the current cell show these outputs and end well; ``outputs`` are made of the request."""
        request = self.request
        shown = [make(request) for make in outputs]
        return self.feed(
            m.busy(request), m.execute_input(request, count), *shown, m.reply_ok(request, count), m.idle(request)
        )

    def fail(self, **error):
        request = self.request
        return self.feed(m.error(request, **error), m.reply_error(request, **error), m.idle(request))

    # --- What was asked for

    @property
    def requests(self):
        """The requests of cells."""
        return [message for message in self.sent if m.is_cell(message)]

    @property
    def request(self):
        return self.requests[-1]

    @property
    def questions(self):
        """The questions beside the cells, without those that only show that the run is there."""
        return [message for message in self.sent if HOUSEKEEPING in message["header"]["msg_id"]]

    @property
    def probe(self):
        return self.questions[-1]

    @property
    def asked(self):
        return [m.question(message) for message in self.questions]

    @property
    def beats(self):
        return [message for message in self.sent if message["channel"] == "control"]

    @property
    def codes(self):
        return [message["content"]["code"] for message in self.requests]

    @property
    def ids(self):
        return [message["header"]["msg_id"].removeprefix("my-session-") for message in self.requests]

    @property
    def error(self):
        return self.run.error

    def cell(self, index):
        return self.notebook.cells[index]

    def papermill(self, index=None):
        holder = self.notebook if index is None else self.cell(index)
        return holder.metadata["papermill"]

    def statuses(self):
        return [cell.metadata["papermill"]["status"] for cell in self.notebook.cells]

    def texts(self, index):
        return [output.get("text") for output in self.saved[-1].cells[index].outputs]

    def own(self, index):
        """What stands in a cell's metadata of ours."""
        return self.cell(index).metadata["smstudio"]


markdown = new_markdown_cell
