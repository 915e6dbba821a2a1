"""`perdure agent`: an agent as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Annotated

import typer

from perdure.cli.console import err
from perdure.runner.load import load_agent
from perdure.runner.runner import run_agent


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("agent")(agent)


def agent(
    target: Annotated[str, typer.Argument(metavar="FILE_OR_MODULE[:Class]", help="Where the agent is defined.")],
    *,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="How many processes of it to run.")] = 1,
) -> None:
    """Run an agent as a process, until Ctrl-C or SIGTERM; then it drains.

    [bold]perdure agent invoices.py[/]            the agent of a file

    [bold]perdure agent shop.agents:Invoices[/]   one of several in a module

    [bold]perdure agent invoices.py --replicas 3[/]

    It works on the platform that NATS_URL, DATABASE_URL and REDIS_URL name, else on the one of this folder
    ([bold]perdure up[/]). Start it as often and on as many machines as you like: replicas share the work, and when one
    is lost the others finish what it held.
    """
    found = load_agent(target)
    if replicas == 1:
        run_agent(found)
        return
    raise typer.Exit(_replicas(target, replicas))


def _replicas(target: str, count: int) -> int:
    """Run `count` processes, start again those that crash, pass our end on to all. The exit code is ours."""
    command = [sys.executable, "-m", "perdure.cli.main", "agent", target]
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    children = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]  # noqa: S603 -- our own program
    began = [time.monotonic()] * count
    pauses = [0.2] * count
    while not ended:
        for index, child in enumerate(children):
            code = child.poll()
            if code is None or ended:
                continue
            lived = time.monotonic() - began[index]
            pauses[index] = 0.2 if lived > 30 else min(pauses[index] * 2, 10.0)
            err.print(f"replica {index + 1} ended with exit code {code}; starting it again in {pauses[index]:.1f} s")
            time.sleep(pauses[index])
            if not ended:
                children[index] = subprocess.Popen(command, start_new_session=True)  # noqa: S603 -- our own program
                began[index] = time.monotonic()
        time.sleep(0.1)
    for child in children:
        child.send_signal(signal.SIGTERM)
    return max(abs(child.wait()) for child in children)
