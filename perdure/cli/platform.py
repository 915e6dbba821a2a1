"""`perdure up`, `down` and `status`: the whole platform on this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import psutil
import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.console import err, fail, log_warnings, out, print_json, run
from perdure.embedded.child import Child, begin_log, last_words
from perdure.embedded.health import Seen, part_health
from perdure.embedded.platform import Platform
from perdure.embedded.processes import python_environment
from perdure.embedded.state import PlatformState, running_state
from perdure.errors import SetupError
from perdure.settings import Settings, load_settings

READY = "perdure is ready"
_DETACHED_TIMEOUT = 180.0
_SAME_WISH = 1.0


class Output(StrEnum):
    """How `status` prints."""

    TABLE = "table"
    JSON = "json"
    ENV = "env"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready and let it run on.")] = False,
) -> None:
    """Start the platform on this machine: servers, migrations, services, ready agents.

    Servers named by NATS_URL, DATABASE_URL or REDIS_URL are used as they are; the rest is embedded, with its data under
    [bold].perdure/[/] (or PERDURE_HOME), kept between starts. Ctrl-C drains and stops all of it.
    PERDURE_AGENTS lists the ready agents to start (default: assistant,activation).
    """
    settings = load_settings()
    log_warnings(settings)
    home = settings.home.resolve()
    if detach:
        _up_detached(home)
    else:
        run(_up(settings))


def down() -> None:
    """Stop the platform of this folder (or PERDURE_HOME): it finishes what it does, and keeps its data."""
    home = load_settings().home.resolve()
    state = _running(home)
    supervisor = state.supervisor.process()
    if supervisor is not None:
        with suppress(psutil.NoSuchProcess):
            supervisor.terminate()
            with err.status("stopping"):
                supervisor.wait()
    out.print("stopped")


def status(
    *,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table, json, or env for a shell to eval.")
    ] = Output.TABLE,
) -> None:
    """Show what runs in this folder (or PERDURE_HOME), where, and whether it answers.

    [bold]eval "$(perdure status -o env)"[/] points the programs of this shell at it.
    """
    state = _running(load_settings().home.resolve())
    if output is Output.ENV:
        for name, value in (state.urls.environment() if state.urls else {}).items():
            typer.echo(f"export {name}={_quoted(value)}")
        return
    health = run(part_health(state))
    if output is Output.JSON:
        parts = [{**asdict(part), **asdict(health[part.name])} for part in state.parts]
        print_json({**asdict(state), "parts": parts})
        return
    out.print(_table(state, health))
    out.print(READY if state.ready else "perdure is starting or stopping")


async def _up(settings: Settings) -> None:
    platform = Platform(settings, say=lambda line: err.print(f"[dim]{escape(line)}[/]", soft_wrap=True))
    stop_asked = asyncio.Event()
    starting = asyncio.ensure_future(platform.start())
    loop = asyncio.get_running_loop()
    first: float | None = None
    killing: list[asyncio.Future[None]] = []

    def on_signal() -> None:
        nonlocal first
        if first is None:
            first = loop.time()
            err.print("stopping: what runs is finished first (again: at once)")
            stop_asked.set()
            starting.cancel()
        # A signal to a whole group comes twice, from the group and from `make`: that is one wish.
        elif loop.time() - first > _SAME_WISH and not killing:
            err.print("stopping at once")
            killing.append(asyncio.ensure_future(platform.kill()))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        await starting
        if platform.state is not None:
            out.print(_table(platform.state, {}))
            await asyncio.to_thread(_say_if_open, platform.state)
        typer.echo(READY)
        sys.stdout.flush()
        await stop_asked.wait()
    except asyncio.CancelledError:
        if not stop_asked.is_set():
            raise
    finally:
        await platform.stop()
        await asyncio.gather(*killing)


def _up_detached(home: Path) -> None:
    if (state := running_state(home)) is not None:
        fail(f"a platform already runs in {home} (process {state.supervisor.pid}); `perdure status` shows it")
    log = home / "log" / "platform.log"
    begins = begin_log(log)
    child = Child.spawn(
        [sys.executable, "-P", "-m", "perdure.cli.main", "up"],
        log_file=log,
        env=python_environment({"PERDURE_HOME": str(home)}),
        death_signal=None,
    )
    deadline = time.monotonic() + _DETACHED_TIMEOUT
    with err.status("starting"):
        while time.monotonic() < deadline and child.poll() is None:
            state = running_state(home)
            if state is not None and state.ready:
                out.print(_table(state, {}))
                _say_if_open(state)
                typer.echo(READY)
                return
            time.sleep(0.05)
    if child.poll() is None:
        child.send(signal.SIGTERM)
        fail(f"not ready within {_DETACHED_TIMEOUT:.0f} s; see {log}")
    fail(f"it did not start: {last_words(log, begins)} (log: {log})")


def _say_if_open(state: PlatformState) -> None:
    """Say it when the gateway asks nobody for a key. Asks the gateway; one that speaks TLS has been set up."""
    url = urlsplit((state.urls and state.urls.gateway_url) or "")
    if url.scheme != "http" or not url.hostname:
        return
    connection = HTTPConnection(url.hostname, url.port, timeout=10)
    try:
        connection.request("GET", "/agents")
        if connection.getresponse().status == HTTPStatus.OK:
            err.print("no keys are made: everybody on this machine may do everything (`perdure key create` ends that)")
    except (OSError, HTTPException):
        return  # `perdure status` says how it is
    finally:
        connection.close()


def _running(home: Path) -> PlatformState:
    state = running_state(home)
    if state is None:
        raise SetupError(
            f"no platform runs in {home}. Start one with `perdure up`, go to the folder of the one you mean, "
            "or set PERDURE_HOME to its .perdure folder"
        )
    return state


def _table(state: PlatformState, health: Mapping[str, Seen]) -> Table:
    table = Table(box=None, pad_edge=False)
    metrics = any(seen.metrics for seen in health.values())
    for column in ("part", "url", "pid", *(["health"] if health else []), *(["metrics"] if metrics else []), "note"):
        table.add_column(column, overflow="fold")
    for part in state.parts:
        url = _without_password(part.url) if part.url else ""
        pid = str(part.running.pid) if part.running else ""
        seen = health.get(part.name)
        told = [seen.health] if seen else []
        told += [seen.metrics or ""] if seen and metrics else []
        table.add_row(part.name, url, pid, *told, part.note)
    return table


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    who, at, where = rest.rpartition("@")
    return f"{scheme}://{who.partition(':')[0]}{at}{where}" if at else url


def _quoted(value: str) -> str:
    """For a POSIX shell."""
    return "'" + value.replace("'", "'\\''") + "'" if set(value) & set(" $'\"\\`!&;|<>()*?[]#~") else value
