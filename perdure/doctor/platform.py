"""The platform's own processes: who is there, how each is, whether the services answer, who took its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client

from perdure import subjects
from perdure.bus import wire
from perdure.client.presence import health_of
from perdure.doctor.findings import Notes
from perdure.embedded.health import part_health
from perdure.embedded.state import running_state
from perdure.errors import PerdureError
from perdure.settings import Settings

SERVICES = {
    "config-manager": ("config.list", {}, "python -m config_manager"),
    "scheduler": ("run.list", {"limit": 1}, "python -m services.scheduler"),
}
# What to do about a health check of `perdure/bus/service.py` and its like that is not ok.
FIXES = {
    "nats": "Look whether nats-server runs, and whether that process may reach it (NATS_URL)",
    "postgres": "Look whether Postgres runs, and whether that process may reach it (DATABASE_URL)",
    "redis": "Look whether Redis runs, and whether that process may reach it (REDIS_URL)",
    "event_loop": "Find the blocking call: `await asyncio.to_thread(…)` takes it off the loop; or give it more CPU",
    "background": "Its log says which loop fails, and why (action=background.failed)",
    "lease": "Look whether that process may reach Postgres (DATABASE_URL), and whether Postgres is busy beyond measure",
    "config": "Set the keys that are held to values that the agent takes: `perdure config set AGENT KEY=VALUE`; or "
    "start a ConfigManager, if none answers: `python -m config_manager`",
    "config_held": "Set those keys to values that their agents take: `perdure config set AGENT KEY=VALUE`",
    "config_listen": "Look whether the ConfigManager may open a direct connection to Postgres, past any pooler",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the platform that answered: its service, its instance, its version, its health."""

    name: str
    agent: str | None
    instance: str
    version: str
    status: str
    findings: Mapping[str, str]


async def processes(nc: Client, *, wait: float = 0.5) -> list[Process]:
    """All that answer `$SRV.STATS` within `wait` seconds and are ours."""
    found: dict[str, Process] = {}
    inbox = await nc.subscribe(nc.new_inbox())
    try:
        await nc.publish("$SRV.STATS", b"", reply=inbox.subject)
        async with asyncio.timeout(wait):
            async for message in inbox.messages:
                if (process := _read(message.data)) is not None:
                    found[process.instance] = process
    except TimeoutError:
        pass  # all who answer have
    finally:
        await inbox.unsubscribe()
    return [found[instance] for instance in sorted(found)]


def _read(data: bytes) -> Process | None:
    try:
        said = orjson.loads(data)
        instance = str(said["metadata"]["instance"])
        name, agent = str(said["name"]), said["metadata"].get("agent")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # a service of someone else
    status, findings = health_of(said)
    return Process(name, agent, instance, str(said.get("version") or ""), status, findings)


async def look(nc: Client, settings: Settings, there: list[Process], notes: Notes) -> None:
    """The services, each process, each agent's settings, and the parts that `perdure up` started here."""
    for name, (subject, body, command) in SERVICES.items():
        await _answers(nc, name, subject, body, command, notes, there)
    for process in there:
        _health(process, notes)
    versions = sorted({process.version for process in there})
    if len(versions) > 1:
        notes.warn(
            "versions",
            f"processes of several versions run: {', '.join(versions)}",
            "Finish the upgrade: restart the older ones (a drain loses nothing)",
        )
    for agent in sorted({process.agent for process in there if process.agent}):
        await _applied(nc, agent, notes)
    await _parts(settings, notes)


async def _answers(
    nc: Client, name: str, subject: str, body: dict[str, Any], command: str, notes: Notes, there: list[Process]
) -> None:
    here = [process for process in there if process.name == name]
    if not here:
        return notes.error(name, f"no {name} is registered", f"Start one: `{command}`, or all of it with `perdure up`")
    try:
        await wire.request(nc, subject, body, timeout=3.0)
    except (PerdureError, nats_errors.Error, TimeoutError) as error:
        text = str(error) or type(error).__name__
        fix = f"Look into the log of {here[0].instance}; started again, it takes up where it was"
        return notes.error(name, f"{name} is registered and does not answer `{subject}`: {text}", fix)
    return notes.ok(name, f"{len(here)} of it" if len(here) > 1 else here[0].instance)


def _health(process: Process, notes: Notes) -> None:
    if process.status not in ("warning", "critical"):
        return
    say = notes.error if process.status == "critical" else notes.warn
    for check, text in process.findings.items():
        fix = FIXES.get(check, f"Look into the log of {process.instance}")
        say("health", f"{process.name} ({process.instance}), {check}: {text}", fix)


async def _applied(nc: Client, agent: str, notes: Notes) -> None:
    """What each instance of an agent last said of its configuration."""
    rejected: dict[str, str] = {}
    inbox = await nc.subscribe(nc.new_inbox())
    try:
        await nc.publish(subjects.config_state(agent), b"", reply=inbox.subject)
        async with asyncio.timeout(0.5):
            async for message in inbox.messages:
                said = orjson.loads(message.data) if message.data else {}
                if said.get("status") == "rejected":
                    rejected |= said.get("errors") or {}
    except TimeoutError:
        pass  # all who answer have
    finally:
        await inbox.unsubscribe()
    for key, why in sorted(rejected.items()):
        notes.error(
            "configuration",
            f"{agent} does not take {key}: {why}",
            f"`perdure config set {agent} {key}=…` with a value that it takes; until then it keeps the last good one",
        )


async def _parts(settings: Settings, notes: Notes) -> None:
    home = await asyncio.to_thread(settings.home.resolve)
    state = await asyncio.to_thread(running_state, home)
    if state is None:
        return
    for part, seen in (await part_health(state)).items():
        if seen.health != "ok":
            notes.error(
                "parts",
                f"{part} of the platform in {home} is {seen.health}",
                f"See {home / 'log' / part}.log; `perdure down`, then `perdure up`, starts all of it anew",
            )
