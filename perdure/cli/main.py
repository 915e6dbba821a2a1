"""The command `perdure`. Each module of this folder adds its commands with `register(app)`."""

from __future__ import annotations

import getpass
import os
import sys
from importlib import import_module

import typer

from perdure.cli.console import err, fail
from perdure.errors import PerdureError
from perdure.store.actor import actor

# Which module has which command: only the module of the command at hand is imported, for a quick start.
COMMANDS = {
    "up": "platform",
    "down": "platform",
    "status": "platform",
    "doctor": "doctor",
    "migrate": "migrate",
    "agent": "agent",
    "run": "run",
    "chat": "chat",
    "runs": "runs",
    "sessions": "sessions",
    "queues": "queues",
    "schedules": "schedules",
    "agents": "agents",
    "config": "config",
    "key": "key",
    "deploy": "deploy",
    "audit": "audit",
}
HELP = """AI agents as microservices on NATS, whose work outlives their processes.

[bold]perdure up[/] starts everything on this machine. Then, in another terminal:

  perdure run assistant 'Write a haiku about programming.'

  perdure chat assistant

  perdure config set assistant agent_role='Pirate'

A command finds the platform by NATS_URL, DATABASE_URL and REDIS_URL, or at the default ports:
[bold]eval "$(perdure status -o env)"[/] sets them to the platform of this folder.
"""


def build(command: str | None = None) -> typer.Typer:
    """The command line with all commands, or with those of the module that has `command`."""
    app = typer.Typer(
        name="perdure",
        help=HELP,
        rich_markup_mode="rich",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    # A callback makes the names of commands required even when one command alone is mounted.
    app.callback()(_nothing)
    modules = [COMMANDS[command]] if command in COMMANDS else list(dict.fromkeys(COMMANDS.values()))
    for module in modules:
        import_module(f"perdure.cli.{module}").register(app)
    return app


def main() -> None:
    """Run the command of `sys.argv`; an error of ours is one line on stderr and exit code 1."""
    command = sys.argv[1] if len(sys.argv) > 1 else None
    actor.set(_user())
    try:
        build(command)()
    except PerdureError as error:
        _end(error)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _user() -> str:
    """Who calls, for the audit log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "perdure command"


def _nothing() -> None:
    pass  # what would stand before a command


def _end(error: PerdureError) -> None:
    try:
        fail(error)
    except typer.Exit as end:
        err.file.flush()
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
