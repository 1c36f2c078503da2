"""Whose run it is: what a process may do that was given up, and what its successor; with a server made of dicts."""

from __future__ import annotations

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from airflow_provider_smstudio.studio.errors import (
    NotebookNotFoundError,
    RunTakenOverError,
    SaveError,
    ServerError,
)
from airflow_provider_smstudio.studio.jupyter.kernel_removal import remove_kernel
from airflow_provider_smstudio.studio.runs.output_guard import OutputGuard
from airflow_provider_smstudio.studio.runs.remote_kernel import RemoteKernel

PATH = "out.ipynb"


class Server:
    """Sessions, kernels and one notebook; ``refuses`` and ``silent`` name what does not work."""

    classic = False

    def __init__(self, owner: str = "a1") -> None:
        self.session = {"id": "s1", "name": f"run [smstudio {owner} since 1]", "kernel": {"id": "k1"}}
        self.sessions_there, self.kernels_there = {"s1"}, {"k1"}
        self.notebook: NotebookNode | None = None
        self.refuses: set[str] = set()
        self.silent: set[str] = set()
        self.calls: list[str] = []
        self.written: list[bytes] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.silent:
            raise ServerError(f"no answer to {name}", status=None)
        if name in self.refuses:
            raise ServerError(f"{name}: Unhandled error", status=500)

    def find_session(self, session_id, *, timeout=15.0):
        self._called("find_session")
        return self.session if session_id in self.sessions_there else None

    def kernel_state(self, kernel_id, *, timeout=15.0):
        self._called("kernel_state")
        return "idle" if kernel_id in self.kernels_there else None

    def rename_session(self, session_id, name, *, timeout=15.0):
        self._called("rename_session")
        self.session["name"] = name

    def delete_session(self, session_id, *, timeout=60.0):
        self._called("delete_session")
        self.sessions_there.clear()
        self.kernels_there.clear()

    def delete_kernel(self, kernel_id, *, timeout=60.0):
        self._called("delete_kernel")
        self.kernels_there.clear()
        self.sessions_there.clear()

    def read_notebook(self, path):
        self._called("read_notebook")
        if self.notebook is None:
            raise NotebookNotFoundError("nothing there", path=path)
        return self.notebook

    def modified(self, path):
        return None

    def write_notebook(self, path, body, *, timeout=300.0):
        self._called("write_notebook")
        self.written.append(body)

    def is_written_by(self, owner: str) -> None:
        self.notebook = new_notebook(metadata={"smstudio": {"run": {"owner": owner}}})


def kernel_of(server: Server, owner: str) -> RemoteKernel:
    kernel = RemoteKernel(server, timeout=1, delete_app=False, stop_reason=lambda: None, owner=owner)  # type: ignore[arg-type]
    kernel.adopt(server.session)
    return kernel


def guard_of(server: Server, kernel: RemoteKernel) -> OutputGuard:
    return OutputGuard(server, PATH, new_notebook(), kernel.ownership)  # type: ignore[arg-type]


def named(owner: str) -> str:
    return f"run [smstudio {owner} since 2]"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Server()


def test_who_took_a_run_over_owns_it_before_and_after_it_is_renamed(server: Server) -> None:
    kernel = kernel_of(server, "b2")
    assert kernel.ownership.is_ours()
    assert kernel.ownership.rename(named("b2"))
    assert kernel.ownership.is_ours()


def test_the_name_of_the_process_before_means_another_one_once_it_was_renamed(server: Server) -> None:
    """It may have renamed the session a moment later: then it is the owner."""
    kernel = kernel_of(server, "b2")
    kernel.ownership.rename(named("b2"))
    server.session["name"] = named("a1")
    with pytest.raises(RunTakenOverError):
        kernel.ownership.is_ours()


def test_what_was_found_out_stays(server: Server) -> None:
    kernel = kernel_of(server, "a1")
    guard = guard_of(server, kernel)
    server.session["name"] = named("b2")
    with pytest.raises(RunTakenOverError):
        guard.write(b"mine")
    kernel.leave()
    server.session["name"] = named("a1")
    with pytest.raises(RunTakenOverError):
        guard.write(b"mine")
    assert server.written == []


def test_a_release_leaves_anothers_kernel_alone_and_nothing_is_written_after_it(server: Server) -> None:
    kernel = kernel_of(server, "a1")
    guard = guard_of(server, kernel)
    server.session["name"] = named("b2")
    kernel.release(hurry=True)
    with pytest.raises(RunTakenOverError):
        guard.write(b"mine", hurry=True)
    assert server.kernels_there == {"k1"}
    assert server.written == []


def test_a_run_that_another_process_has_ended_is_its_own(server: Server) -> None:
    kernel = kernel_of(server, "a1")
    server.sessions_there.clear()
    server.is_written_by("b2")
    with pytest.raises(RunTakenOverError, match="has ended it"):
        guard_of(server, kernel).write(b"mine")


@pytest.mark.parametrize("writer", ["a1", "b2", "c3", None])
def test_a_session_that_is_gone_keeps_nobody_from_saving_who_goes_on_with_the_notebook(
    server: Server, writer: str | None
) -> None:
    """Written by A, taken over by B, who was lost before it saved anything, and now by C."""
    server.session["name"] = named("b2")
    kernel = kernel_of(server, "c3")
    kernel.ownership.accept_writer("a1")
    server.sessions_there.clear()
    if writer is not None:
        server.is_written_by(writer)
    guard_of(server, kernel).write(b"mine")
    assert server.written == [b"mine"]


def test_before_there_is_a_session_nobody_is_asked(server: Server) -> None:
    kernel = RemoteKernel(server, timeout=1, delete_app=False, stop_reason=lambda: None, owner="a1")  # type: ignore[arg-type]
    guard_of(server, kernel).write(b"first")
    assert server.calls == ["write_notebook"]


@pytest.mark.parametrize("hurry", [False, True])
def test_where_nobody_says_whose_the_run_is_nothing_is_touched(
    server: Server, hurry: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is too busy to answer may still do later what it was asked for: a successor's kernel would go."""
    server.silent = {"find_session"}
    kernel = kernel_of(server, "a1")
    with pytest.raises(SaveError, match="the server did not say whether another process has taken over this run"):
        guard_of(server, kernel).write(b"mine", hurry=hurry)
    kernel.release(hurry=hurry)
    assert set(server.calls) == {"find_session"}
    assert "kernel k1 may still run: the server did not say which process owns the run" in caplog.text


def test_in_a_hurry_it_is_asked_in_vain_only_once(server: Server) -> None:
    server.silent = {"find_session"}
    kernel = kernel_of(server, "a1")
    with pytest.raises(SaveError):
        guard_of(server, kernel).check(hurry=True)
    kernel.release(hurry=True)
    assert server.calls == ["find_session"]


def test_a_server_that_answers_with_an_error_keeps_nobody_from_it(server: Server) -> None:
    server.refuses = {"find_session"}
    kernel = kernel_of(server, "a1")
    guard_of(server, kernel).write(b"mine")
    server.refuses = {"find_session", "delete_session"}
    kernel.release(hurry=True)
    assert server.written == [b"mine"]
    assert server.kernels_there == set()


class TestRemoval:
    def test_both_ways_and_a_look(self, server: Server) -> None:
        remove_kernel(server, "s1", "k1")  # type: ignore[arg-type]
        assert server.calls == ["delete_session", "delete_kernel", "kernel_state", "find_session"]

    def test_a_hurry_looks_only_where_something_was_refused(self, server: Server) -> None:
        remove_kernel(server, "s1", "k1", hurry=True)  # type: ignore[arg-type]
        assert server.calls == ["delete_session", "delete_kernel"]

    @pytest.mark.parametrize("hurry", [False, True])
    @pytest.mark.parametrize("name", ["delete_session", "delete_kernel"])
    def test_one_way_is_enough(self, server: Server, name: str, hurry: bool) -> None:
        server.refuses = {name}
        remove_kernel(server, "s1", "k1", hurry=hurry)  # type: ignore[arg-type]
        assert server.kernels_there == set()
        assert server.calls.count(name) == 1

    def test_where_neither_works_it_is_tried_again_and_then_said(self, server: Server) -> None:
        server.refuses = {"delete_session", "delete_kernel"}
        with pytest.raises(ServerError, match="delete_session: Unhandled error"):
            remove_kernel(server, "s1", "k1")  # type: ignore[arg-type]
        assert server.calls.count("delete_kernel") == 5

    def test_no_answer_to_the_one_keeps_nobody_from_trying_the_other(self, server: Server) -> None:
        server.silent = {"delete_session"}
        with pytest.raises(ServerError, match="no answer to delete_session"):
            remove_kernel(server, "s1", "k1", hurry=True)  # type: ignore[arg-type]
        assert server.kernels_there == set()

    def test_an_error_that_is_none_of_the_servers_gets_out(self, server: Server) -> None:
        def odd(*_: object, **__: object) -> None:
            raise SaveError("odd", status=None)

        server.delete_session = odd  # type: ignore[method-assign]
        with pytest.raises(SaveError):
            remove_kernel(server, "s1", None)  # type: ignore[arg-type]
