"""Every error that the client raises on purpose.

The tree::

    StudioError
    |- InvalidInputError (also ValueError)   what the caller asked for cannot be; nothing was started
    |  |- ParameterError                     a notebook parameter: its name, its value, or unknown
    |  |- NotebookNotFoundError              no such notebook in the Studio home (or at the upload's source)
    |  |- NotANotebookError                  a folder, a plain file, or JSON that is no notebook
    |  |- KernelNotFoundError                no kernelspec on the server fits
    |  `- OutputPathError                    the executed notebook cannot be saved there
    |- ControlPlaneError                     the SageMaker API refused or failed
    |  `- ResourceNotFoundError              unknown domain, user profile or space
    |- AppError                              the Studio app
    |  |- AppNotReadyError                   stopped, starting or not answering yet: wait with the sensor
    |  |- AppInUseError                      it is not stopped, because somebody uses it
    |  `- AppFailedError                     in a state that it does not leave by itself
    |- LoginError                            logging in to Studio's front door
    |  |- NoAnswerError                      the connection failed; trying again may help
    |  |- LoginLinkExpiredError              the presigned URL was not accepted
    |  `- SessionExpiredError                the login ended and could not be renewed
    |- ServerError                           Jupyter's REST API answered with an error
    |  `- SaveError                          the executed notebook could not be saved
    |- ConnectionLostError                   the kernel's websocket broke
    `- RunError                              the run of the notebook itself
       |- KernelStartError                   the kernel died or did not answer in time
       |- CellError                          a cell raised
       |- CellTimeoutError                   a cell took longer than allowed
       |- KernelDiedError                    the kernel died, restarted or was shut down under the run
       |- HandedValueError                   a value that the notebook hands out is too large, or no JSON
       |- UnknownOutcomeError                a cell may have run, and nobody can tell how it ended
       |- RunTakenOverError                  another process watches over this run now
       |- RunTimeoutError                    the whole run took longer than allowed
       `- RunKilledError                     somebody stopped the run

Every error pickles with its fields, names the thing and the remedy in its message, and never holds a
presigned URL, a cookie or a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _rebuild(cls: type[StudioError], message: str, fields: dict[str, Any]) -> StudioError:
    return cls(message, **fields)


class StudioError(Exception):
    """Base of all errors of this client.

    :param message: what went wrong, about which thing, and what to do.
    :param fields: facts for programs, kept as attributes of the same name.
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
    """What the caller asked for cannot be done; nothing paid was started."""


class ParameterError(InvalidInputError):
    """A notebook parameter has a bad name, a value that no literal can express, or is unknown.

    :ivar parameter: the parameter's name.
    """

    parameter: str | None = None


class NotebookNotFoundError(InvalidInputError):
    """The notebook does not exist.

    :ivar path: the path that was asked for.
    """

    path: str | None = None


class NotANotebookError(InvalidInputError):
    """The path exists but is a folder, a plain file, or holds no valid notebook.

    :ivar path: the path that was asked for.
    """

    path: str | None = None


class KernelNotFoundError(InvalidInputError):
    """No kernelspec of the server fits.

    :ivar kernel_name: the name that was looked for.
    :ivar available: the names that the server has.
    """

    kernel_name: str | None = None
    available: list[str] = []


class OutputPathError(InvalidInputError):
    """The executed notebook cannot be saved at this path.

    :ivar path: the path.
    """

    path: str | None = None


class ControlPlaneError(StudioError):
    """The SageMaker API refused a request.

    :ivar operation: the API operation, such as ``CreatePresignedDomainUrl``.
    :ivar code: the service's error code, such as ``AccessDeniedException``.
    """

    operation: str | None = None
    code: str | None = None


class ResourceNotFoundError(ControlPlaneError):
    """The domain, user profile or space does not exist.

    :ivar resource: which one, as far as it could be found out.
    """

    resource: str | None = None


class AppError(StudioError):
    """Something about the Studio app.

    :ivar app_type: ``JupyterLab`` or ``JupyterServer``.
    :ivar status: the app's status as the service told it, or None when unknown.
    """

    app_type: str | None = None
    status: str | None = None


class AppNotReadyError(AppError):
    """The app is stopped, still starting, or does not answer yet."""


class AppInUseError(AppError):
    """The app was not stopped: somebody uses it, or somebody else started it.

    :ivar used_by: who, as far as it is known.
    """

    used_by: list[str] = []


class AppFailedError(AppError):
    """The app is in a state that it does not leave by itself.

    :ivar failure_reason: the service's ``FailureReason``, if it gave one.
    """

    failure_reason: str | None = None


class LoginError(StudioError):
    """Logging in to Studio failed."""


class LoginLinkExpiredError(LoginError):
    """Studio did not accept a presigned URL: expired, used up, or for an app that is not running."""


class SessionExpiredError(LoginError):
    """The login ended, and a new one did not help."""


class NoAnswerError(LoginError):
    """The connection to Studio failed; trying again may help."""


class ServerError(StudioError):
    """The Jupyter server answered a REST request with an error.

    :ivar status: the HTTP status, or None when no answer came.
    :ivar method: the HTTP method.
    :ivar path: the path below the server's base URL.
    """

    status: int | None = None
    method: str | None = None
    path: str | None = None


class SaveError(ServerError):
    """The executed notebook could not be saved."""


class ConnectionLostError(StudioError):
    """The kernel's websocket could not be opened, or broke."""


class RunError(StudioError):
    """The run of a notebook failed.

    :ivar output_path: where the notebook as far as it ran is saved, or None.
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

    :ivar cell_number: the cell that ran, counted from 1, or None between cells.
    :ivar cell_index: its index in the executed notebook, from 0.
    """

    cell_number: int | None = None
    cell_index: int | None = None


class HandedValueError(RunError):
    """A value that the notebook hands out cannot be passed on: its name, its size, or it is no JSON.

    :ivar value_name: the value's name.
    """

    value_name: str | None = None


class UnknownOutcomeError(RunError):
    """A cell's answer is lost for good, and its kernel cannot tell whether it ran.

    :ivar cell_number: the cell's number among the notebook's code cells that run, from 1.
    :ivar cell_index: the cell's index in the executed notebook, from 0.
    """

    cell_number: int | None = None
    cell_index: int | None = None


class RunTakenOverError(RunError):
    """Another process, a later try of the same task for instance, has taken over this run; it goes on there."""


class RunTimeoutError(RunError):
    """The whole run took longer than its task may, and was stopped."""


class RunKilledError(RunError):
    """Somebody stopped the run: the task was cleared, failed by hand, or interrupted."""


_LONG_FIELDS = ("source", "traceback")
_LONGEST_FIELD = 1000


def to_plain(error: StudioError) -> dict[str, Any]:
    """Return an error as a small dict of plain values, for a database; :func:`from_plain` makes an error of it.

    What a cell has printed, its traceback included, is left out; the executed notebook has it.
    """
    fields = {
        name: value[:_LONGEST_FIELD] if isinstance(value, str) else value
        for name, value in error.fields.items()
        if name not in _LONG_FIELDS and (value is None or isinstance(value, (str, int, float, bool)))
    }
    return {"type": type(error).__name__, "message": error.message, "fields": fields}


def from_plain(found: Mapping[str, Any]) -> StudioError:
    """Make the error that :func:`to_plain` has written down; of an unknown class, a :class:`StudioError`."""
    kinds = {kind.__name__: kind for kind in _tree(StudioError)}
    kind = kinds.get(str(found.get("type")), StudioError)
    return kind(str(found.get("message") or "no message"), **(found.get("fields") or {}))


def _tree(kind: type[StudioError]) -> list[type[StudioError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _tree(child))]
