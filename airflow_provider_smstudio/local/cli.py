"""``smstudio-local``: run the local Studio for the length of one command, or until interrupted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.lifecycle import APP_STATUSES, FLAVOURS
from airflow_provider_smstudio.local.server.jupyter import JupyterMissingError
from airflow_provider_smstudio.local.server.space_settings import SPACE_KINDS
from airflow_provider_smstudio.local.studio import LocalStudio

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# They would lead boto3 away from the local Studio, or describe another Studio.
_DROPPED = (
    *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    *("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "SMSTUDIO_SPACE_NAME"),
)
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class _InterruptedError(BaseException):
    """A signal arrived, but no command was running that could receive it."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Signals:
    """Sends the signals that this process receives to the command, if one is running."""

    def __init__(self) -> None:
        self.command: subprocess.Popen[bytes] | None = None
        self.ending = False
        self._held: list[int] | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Send a signal to the command. Without a command, stop this process."""
        if self.ending:
            return
        if self._held is not None:
            self._held.append(number)
            return
        if self.command is None:
            self.ending = True
            raise _InterruptedError(number)
        # Ctrl-C in a terminal reaches every process of the foreground group, so the command has received it
        # already.
        if number != signal.SIGINT or not _in_foreground():
            with contextlib.suppress(ProcessLookupError):
                self.command.send_signal(number)

    def start(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the command. A signal that arrives during the start is sent to the command after it."""
        self._held = []
        try:
            self.command = subprocess.Popen(command, env=env)
        finally:
            held, self._held = self._held, None
            for number in held:
                self.handle(number, None)
        return self.command

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        before = {number: signal.signal(number, self.handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smstudio-local", description=__doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    run = commands.add_parser("run", help="start the local Studio, run a command with it, stop it")
    up = commands.add_parser("up", help="start it, print the variables to export, serve until interrupted")
    for command in (run, up):
        command.add_argument("--flavour", choices=FLAVOURS, default="jupyterlab", help="new Studio or Classic")
        command.add_argument("--home", help="folder to serve as the Studio home (default: a new, temporary one)")
        command.add_argument("--app-status", choices=APP_STATUSES, default="InService", help="status at the start")
        command.add_argument("--app-start-delay", type=float, default=0.0, metavar="SECONDS")
        command.add_argument("--domain-id", default="d-localstudio")
        command.add_argument("--user-profile-name", default="demo-user")
        command.add_argument("--space-name", default="demo-space")
        command.add_argument("--region", default="us-east-1")
        command.add_argument(
            "--server-arg",
            action="append",
            default=[],
            metavar="ARG",
            help="argument for jupyter lab, as --server-arg=ARG",
        )
        command.add_argument(
            "--server-python", metavar="PATH", help="Python for the server and its kernels (default: this one)"
        )
        command.add_argument(
            "--space-kind",
            choices=SPACE_KINDS,
            default="stock",
            help="start the server as an image does for this kind of space (default: stock)",
        )
        command.add_argument(
            "--switch",
            action="append",
            default=[],
            type=_switch,
            metavar="NAME=VALUE",
            help="set a switch; the value is JSON or text",
        )
    run.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments, after --")
    return parser


def _switch(text: str) -> tuple[str, Any]:
    name, equals, raw = text.partition("=")
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    known = {field.name for field in dataclasses.fields(Switches)}
    if not equals or name not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with NAME one of {', '.join(sorted(known))}")
    # Values of these two switches may look like JSON, but the switches need text.
    return name, raw if name in ("unauthenticated", "app_start_failure") else value


def _studio(args: argparse.Namespace) -> LocalStudio:
    return LocalStudio(
        args.flavour,
        args.home,
        domain_id=args.domain_id,
        user_profile_name=args.user_profile_name,
        space_name=args.space_name,
        region=args.region,
        app_status=args.app_status,
        server_args=args.server_arg,
        server_python=args.server_python,
        space_kind=args.space_kind,
        **{"app_start_delay": args.app_start_delay, **dict(args.switch)},
    )


def _command_environment(studio: LocalStudio) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    if any(name.lower() in ("http_proxy", "all_proxy") for name in env):
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1", "localhost"]))
    return {**env, **studio.environment}


def _run(args: argparse.Namespace, signals: _Signals) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        _say("run needs a command, after --")
        return 2
    with _studio(args) as studio:
        try:
            process = signals.start(command, _command_environment(studio))
        except OSError as error:
            _say(f"cannot run {command[0]}: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        code = process.wait()
        signals.ending = True
        sessions, kernels = len(studio.sessions()), len(studio.kernels())
        app = "" if studio.app_status == "InService" else f"; its app is {studio.app_status or 'missing'}"
        _say(f"the local Studio reports {sessions} sessions and {kernels} kernels{app}")
    return code if code >= 0 else 128 - code


def _up(args: argparse.Namespace, signals: _Signals) -> int:
    with _studio(args) as studio, contextlib.suppress(_InterruptedError):
        for name, value in studio.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        _say("serving; interrupt to stop")
        while True:
            time.sleep(1)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = _parser().parse_args(argv)
    signals = _Signals()
    with signals.caught():
        try:
            return _run(args, signals) if args.action == "run" else _up(args, signals)
        except JupyterMissingError as error:
            _say(str(error))
            return 1
        except ValueError as error:  # a switch's value, an interpreter
            _say(str(error))
            return 2
        except _InterruptedError as interrupted:
            return 128 + interrupted.number
        finally:
            signals.ending = True


if __name__ == "__main__":
    sys.exit(main())
