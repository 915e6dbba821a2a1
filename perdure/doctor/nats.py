"""NATS: the server, JetStream, our streams and their consumers, and streams of others that are in the way."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.js import errors as js_errors

from perdure import subjects
from perdure.bus.bucket import config_of
from perdure.bus.connection import connect
from perdure.bus.namespace import stream_at, subject_at
from perdure.bus.streams import STREAMS, streams_as_they_are
from perdure.doctor.findings import Notes, split_advice
from perdure.doctor.machine import judge_clock
from perdure.errors import SetupError
from perdure.settings import Settings

LEAST_VERSION = (2, 12)
LEAST_PAYLOAD = 1024 * 1024  # what the parts of large values are cut to
FULL = 0.9
# Requests: a stream that covers one answers it with its own acknowledgement.
REQUESTS = (
    *("run.start.a", "run.ask.a", "run.get", "run.list", "config.get", "config.get.a", "config.set", "config.set.a"),
    *("config.list", "payload.put", "payload.get", "queue.list", "schedule.set", "health.a.b", "process.a.nudge"),
)


async def open_client(settings: Settings, notes: Notes) -> Client | None:
    """A connection, or the finding that there is none."""
    try:
        return await connect(settings, "doctor")
    except SetupError as error:
        notes.error("answers", *split_advice(str(error)))
        return None


async def look(nc: Client, notes: Notes, settings: Settings) -> None:
    """Everything on a connection that is open."""
    _version(nc, notes)
    if nc.max_payload < LEAST_PAYLOAD:
        notes.error(
            "payload",
            f"one message carries {nc.max_payload} bytes",
            f"Set `max_payload: {LEAST_PAYLOAD}` (1MB, the server's default) in nats-server's configuration",
        )
    try:
        account = await _ask(nc, "INFO")
    except (nats_errors.NoRespondersError, TimeoutError) as error:
        account = {"error": {"description": str(error) or "no answer"}}
    if (refusal := account.get("error")) is not None:
        notes.error(
            "JetStream",
            f"JetStream does not answer: {refusal.get('description')}",
            "Start nats-server with JetStream: `jetstream { store_dir: … }` or `nats-server -js`; "
            "with accounts, enable it for the account of NATS_URL",
        )
        return
    _room(account, notes)
    await _streams(nc, notes)
    if settings.payload_store == "nats":
        await _bucket(nc, notes, str(config_of(settings.namespace).name))
    await _consumers(nc, notes)
    await _in_the_way(nc, notes)


def _version(nc: Client, notes: Notes) -> None:
    found = nc.connected_server_version
    said = f"{found.major}.{found.minor}.{found.patch}"
    if (found.major, found.minor) < LEAST_VERSION:
        notes.error("version", f"nats-server {said}", "Use nats-server 2.12 or newer")
    else:
        notes.ok("version", said)


def _room(account: dict[str, Any], notes: Notes) -> None:
    most, used = int(account.get("limits", {}).get("max_storage", -1)), int(account.get("storage", 0))
    needed = sum(int(stream.max_bytes or 0) for stream in STREAMS)
    fix = f"Give the account of NATS_URL at least {needed / 1e9:.1f} GB of JetStream storage (max_file in its limits)"
    if 0 <= most < needed:
        notes.error("JetStream", f"the account may store {most} bytes, and the streams are made for {needed}", fix)
    elif most > 0 and used > FULL * most:
        notes.warn("JetStream", f"{used} of {most} bytes are used", fix)
    else:
        notes.ok("JetStream", f"{used / 1e6:.1f} MB are stored")


async def _streams(nc: Client, notes: Notes) -> None:
    try:
        found = await streams_as_they_are(nc.jetstream())
    except (js_errors.Error, nats_errors.Error, TimeoutError) as error:
        notes.error("streams", f"they cannot be looked at: {error}", "Let the user of NATS_URL ask `$JS.API.>`")
        return
    for name, drift in found.items():
        if drift is None:
            notes.error(
                "streams",
                f"the stream {name} is not there",
                "Start the scheduler (or any agent): it makes the streams, and its log says when it cannot, such as "
                "for want of room (jetstream { max_file_store })",
            )
        elif "retention" in drift:
            notes.error(
                "streams",
                f"the stream {name} has another retention than ours, which cannot be changed in place",
                f"`nats stream rm {stream_at(nc, name)}`, then start the scheduler: what it held is woken again from "
                "Postgres; or use another NATS account",
            )
        elif drift:
            notes.warn(
                "streams",
                f"the stream {name} differs from ours in {', '.join(drift)}",
                "Restart the scheduler: it sets them back, and its log says when the server refuses",
            )
    if all(drift == [] for drift in found.values()):
        notes.ok("streams", ", ".join(found))


async def _bucket(nc: Client, notes: Notes, stream: str) -> None:
    try:
        said = await _ask(nc, f"STREAM.INFO.{stream}")
    except (nats_errors.Error, TimeoutError) as error:
        said = {"error": {"description": str(error) or "no answer"}}
    if "error" in said:
        notes.error(
            "payloads",
            f"the object store for large values is not there: {stream} ({said['error'].get('description')})",
            "Start the scheduler with PERDURE_PAYLOAD_STORE=nats: it makes it, and its log says when it cannot",
        )
    else:
        notes.ok("payloads", f"{said['state']['bytes'] / 1e6:.1f} MB in {stream}")


async def _consumers(nc: Client, notes: Notes) -> None:
    bad = False
    for stream in (subjects.STREAM_WORK, subjects.STREAM_TASKS):
        listed = await _ask(nc, f"CONSUMER.LIST.{stream_at(nc, stream)}")
        for consumer in listed.get("consumers") or ():
            name, most = consumer["name"], int(consumer["config"].get("max_ack_pending") or 0)
            if 0 < most <= int(consumer.get("num_ack_pending") or 0):
                bad = True
                notes.warn(
                    "consumers",
                    f"the consumer {name} of {stream} has {most} messages that nobody acknowledged, and gets no more",
                    f"Look into the log of {name}; start more replicas of it",
                )
            if int(consumer.get("num_pending") or 0) and not int(consumer.get("num_waiting") or 0):
                bad = True
                who = "the scheduler" if stream == subjects.STREAM_TASKS else f"the agent {name}"
                fix = (
                    "`python -m services.scheduler`"
                    if stream == subjects.STREAM_TASKS
                    else f"`perdure agent FILE` of {name}"
                )
                notes.warn(
                    "consumers",
                    f"{consumer['num_pending']} messages of {stream} wait for {who}, and it does not take them",
                    f"Start it: {fix}",
                )
    if not bad:
        notes.ok("consumers", "nothing is stuck")


async def _in_the_way(nc: Client, notes: Notes) -> None:
    """Streams of others that would answer our requests."""
    ours = {stream_at(nc, str(stream.name)) for stream in STREAMS}
    wanted = [subject_at(nc, subject) for subject in REQUESTS]
    found = False
    for stream in (await _ask(nc, "STREAM.LIST")).get("streams") or ():
        config = stream["config"]
        covered = {p for p in config.get("subjects") or () if any(_covers(p, subject) for subject in wanted)}
        if config["name"] not in ours and covered:
            found = True
            notes.error(
                "streams of others",
                f"the stream {config['name']} has {', '.join(sorted(covered))}: it answers Perdure's requests with its "
                "own acknowledgements",
                f"Narrow its subjects (`nats stream edit {config['name']}`), or give Perdure a NATS account of its own",
            )
    if not found:
        notes.ok("streams of others", "none is in the way")


async def clock(nc: Client, notes: Notes, now: float) -> None:
    """The server's clock beside ours, which was `now` (seconds since 1970) at `time.monotonic()` of this call."""
    began = time.monotonic()
    try:
        said = (await _ask(nc, f"STREAM.INFO.{stream_at(nc, subjects.STREAM_WORK)}")).get("ts")
    except (nats_errors.Error, TimeoutError):
        return
    if isinstance(said, str):
        middle = now + (time.monotonic() - began) / 2
        judge_clock(notes, "NATS", datetime.fromisoformat(said[:19] + "+00:00").timestamp() + 0.5 - middle)


async def _ask(nc: Client, verb: str) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads((await nc.request(f"$JS.API.{verb}", b"", timeout=3)).data)
    return answer


def _covers(pattern: str, subject: str) -> bool:
    """Whether a stream's subject takes in `subject`."""
    tokens, wanted = pattern.split("."), subject.split(".")
    for number, part in enumerate(tokens):
        if part == ">":
            return len(wanted) > number
        if number >= len(wanted) or part not in ("*", wanted[number]):
            return False
    return len(tokens) == len(wanted)
