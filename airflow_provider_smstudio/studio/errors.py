"""Every error that the client raises on purpose.

The tree::

    StudioError
    |- InvalidInputError (also ValueError)   the input is not valid; nothing was started
    |  |- ParameterError                     a notebook parameter is unknown, or has a wrong name or value
    |  |- NotebookNotFoundError              no such notebook in the Studio home (or at the upload's source)
    |  |- NotANotebookError                  a folder, another file, or JSON that is not a notebook
    |  |- KernelNotFoundError                no kernelspec of the server matches
    |  `- OutputPathError                    the executed notebook cannot be saved at this path
    |- ControlPlaneError                     the SageMaker API refused a request, or the request failed
    |  `- ResourceNotFoundError              unknown domain, user profile or space
    |- AppError                              an error of the Studio app
    |  |- AppNotReadyError                   stopped, starting or not answering yet: wait with the sensor
    |  |- AppInUseError                      not stopped, because the app is in use
    |  `- AppFailedError                     in a state that it does not leave by itself
    |- LoginError                            the login to Studio failed
    |  |- NoAnswerError                      the connection failed; another attempt may help
    |  |- LoginLinkExpiredError              Studio did not accept the presigned URL
    |  `- SessionExpiredError                the login ended and could not be renewed
    |- ServerError                           Jupyter's REST API answered with an error
    |  `- SaveError                          the executed notebook could not be saved
    |- ConnectionLostError                   the kernel websocket broke
    `- RunError                              the run of the notebook failed
       |- KernelStartError                   the kernel died or did not answer in time
       |- CellError                          a cell raised an error
       |- CellTimeoutError                   a cell took longer than allowed
       |- KernelDiedError                    the kernel died, restarted or was shut down during the run
       |- HandedValueError                   a value that the notebook publishes is too large, or is not JSON
       |- UnknownOutcomeError                a cell may have run, and its result is lost
       |- RunTakenOverError                  another process watches this run now
       |- RunTimeoutError                    the whole run took longer than allowed
       `- RunKilledError                     the run was stopped before its end

Every error can be pickled with its fields. Its message names the thing and the remedy.
It never contains a presigned URL, a cookie or a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _rebuild(cls: type[StudioError], message: str, fields: dict[str, Any]) -> StudioError:
    return cls(message, **fields)


class StudioError(Exception):
    """The base class of all errors of this client.

    :param message: the thing, the problem with it, and the remedy.
    :param fields: facts for programs. Each one becomes an attribute of the same name.
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields)


class InvalidInputError(StudioError, ValueError):
    """The input is not valid. Nothing was started that costs money."""


class ParameterError(InvalidInputError):
    """A notebook parameter is unknown, has a bad name, or has a value that no literal can express.

    :ivar parameter: the parameter's name.
    """

    parameter: str | None = None


class NotebookNotFoundError(InvalidInputError):
    """The notebook does not exist.

    :ivar path: the requested path.
    """

    path: str | None = None


class NotANotebookError(InvalidInputError):
    """The path exists, but is a folder, another file, or an invalid notebook.

    :ivar path: the requested path.
    """

    path: str | None = None


class KernelNotFoundError(InvalidInputError):
    """No kernelspec of the server matches.

    :ivar kernel_name: the requested name.
    :ivar available: the names of the server's kernelspecs.
    """

    kernel_name: str | None = None
    available: list[str] = []


class OutputPathError(InvalidInputError):
    """The executed notebook cannot be saved at this path.

    :ivar path: the path.
    """

    path: str | None = None


class ControlPlaneError(StudioError):
    """The SageMaker API refused a request, or the request failed.

    :ivar operation: the API operation, such as ``CreatePresignedDomainUrl``.
    :ivar code: the error code of AWS, such as ``AccessDeniedException``.
    """

    operation: str | None = None
    code: str | None = None


class ResourceNotFoundError(ControlPlaneError):
    """The domain, user profile or space does not exist.

    :ivar resource: the kind of the missing resource, such as ``space``, if known.
    """

    resource: str | None = None


class AppError(StudioError):
    """An error of the Studio app.

    :ivar app_type: ``JupyterLab`` or ``JupyterServer``.
    :ivar status: the app's status as AWS reported it, or None if unknown.
    """

    app_type: str | None = None
    status: str | None = None


class AppNotReadyError(AppError):
    """The app is stopped, still starting, or does not answer yet."""


class AppInUseError(AppError):
    """The app was not stopped, because it is in use, or because its use is not known.

    :ivar used_by: the names of the sessions and kernels that use it, if known.
    """

    used_by: list[str] = []


class AppFailedError(AppError):
    """The app is in a state that it does not leave by itself.

    :ivar failure_reason: the ``FailureReason`` of SageMaker, if it gave one.
    """

    failure_reason: str | None = None


class LoginError(StudioError):
    """The login to Studio failed."""


class LoginLinkExpiredError(LoginError):
    """Studio did not accept a presigned URL: it is expired or used up, or its app is not running."""


class SessionExpiredError(LoginError):
    """The login ended, and a new one did not help."""


class NoAnswerError(LoginError):
    """The connection to Studio failed. Another attempt may help."""


class ServerError(StudioError):
    """The Jupyter server answered a REST request with an error.

    :ivar status: the HTTP status, or None if there was no answer.
    :ivar method: the HTTP method.
    :ivar path: the path below the server's base URL.
    """

    status: int | None = None
    method: str | None = None
    path: str | None = None


class SaveError(ServerError):
    """The executed notebook could not be saved."""


class ConnectionLostError(StudioError):
    """The kernel websocket could not be opened, or it broke."""


class RunError(StudioError):
    """The run of a notebook failed.

    :ivar output_path: the path where the partly executed notebook is saved, or None.
    """

    output_path: str | None = None


class KernelStartError(RunError):
    """The kernel died while starting, or did not answer in time."""


class CellError(RunError):
    """A cell raised an error.

    :ivar cell_number: the cell's number among the notebook's code cells that run, from 1.
    :ivar cell_index: the cell's index in the executed notebook, from 0.
    :ivar source: the cell's source.
    :ivar ename: the name of the exception in the kernel.
    :ivar evalue: its message.
    :ivar traceback: its traceback, as one plain text without terminal colours.
    """

    cell_number: int | None = None
    cell_index: int | None = None
    source: str = ""
    ename: str = ""
    evalue: str = ""
    traceback: str = ""


class CellTimeoutError(RunError):
    """A cell took longer than allowed and was interrupted.

    :ivar cell_number: the cell's number among the notebook's code cells that run, from 1.
    :ivar cell_index: the cell's index in the executed notebook, from 0.
    :ivar timeout: the limit, in seconds.
    """

    cell_number: int | None = None
    cell_index: int | None = None
    timeout: float | None = None


class KernelDiedError(RunError):
    """The kernel died, restarted or was shut down while the notebook ran.

    :ivar cell_number: the number of the running cell, counted from 1, or None between cells.
    :ivar cell_index: its index in the executed notebook, from 0.
    """

    cell_number: int | None = None
    cell_index: int | None = None


class HandedValueError(RunError):
    """A value that the notebook publishes cannot be used: it has a bad name, is too large, or is not JSON.

    :ivar value_name: the value's name.
    """

    value_name: str | None = None


class UnknownOutcomeError(RunError):
    """A cell's reply is lost, and its kernel cannot report whether the cell ran.

    :ivar cell_number: the cell's number among the notebook's code cells that run, from 1.
    :ivar cell_index: the cell's index in the executed notebook, from 0.
    """

    cell_number: int | None = None
    cell_index: int | None = None


class RunTakenOverError(RunError):
    """Another process, for example a retry of the same task, has taken over this run and continues it."""


class RunTimeoutError(RunError):
    """The whole run took longer than its task allows, and was stopped."""


class RunKilledError(RunError):
    """The run was stopped before its end: the task was cleared, marked as failed by hand, or interrupted."""


_LONG_FIELDS = ("source", "traceback")
_LONGEST_FIELD = 1000


def to_plain(error: StudioError) -> dict[str, Any]:
    """Return an error as a small dict of plain values, for a database; :func:`from_plain` restores the error.

    The dict omits the cell's source and its traceback, which are in the executed notebook.
    """
    fields = {
        name: value[:_LONGEST_FIELD] if isinstance(value, str) else value
        for name, value in error.fields.items()
        if name not in _LONG_FIELDS and (value is None or isinstance(value, (str, int, float, bool)))
    }
    return {"type": type(error).__name__, "message": error.message, "fields": fields}


def from_plain(found: Mapping[str, Any]) -> StudioError:
    """Return the error that :func:`to_plain` has converted; a :class:`StudioError` if its class is unknown."""
    kinds = {kind.__name__: kind for kind in _tree(StudioError)}
    kind = kinds.get(str(found.get("type")), StudioError)
    return kind(str(found.get("message") or "no message"), **(found.get("fields") or {}))


def _tree(kind: type[StudioError]) -> list[type[StudioError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _tree(child))]
