"""The JetStream streams, made and kept in shape by whoever starts first. All of them may be wiped at any moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

import structlog
from nats import errors as nats_errors
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from perdure import subjects
from perdure.bus.namespace import stream_at
from perdure.errors import SetupError

MIB: Final = 1024 * 1024
HOUR: Final = 3600
NAME_TAKEN: Final = 10058  # the server's error code: someone else has just made the stream, with another config
ATTEMPTS: Final = 8

STREAMS: Final = (
    StreamConfig(
        name=subjects.STREAM_WORK,
        description="Wake-ups for agents. A lost one is a delay: the sweeper repeats it.",
        subjects=[f"{subjects.WORK}.>"],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs=1_000_000,
        max_bytes=256 * MIB,
        max_age=HOUR,
        duplicate_window=0.1,  # the least the server takes; no wake-up carries a message id
    ),
    StreamConfig(
        name=subjects.STREAM_TASKS,
        description="Tasks on their way to becoming runs. When full, the publisher is refused; none is dropped.",
        subjects=[f"{subjects.TASK}.>"],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_msgs=1_000_000,
        max_bytes=1024 * MIB,
        duplicate_window=120,
    ),
    StreamConfig(
        name=subjects.STREAM_EVENTS,
        description="Events of runs, to be replayed by whoever watches one.",
        subjects=[f"{subjects.RUN_EVENTS}.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs_per_subject=10_000,
        max_bytes=1024 * MIB,
        max_age=7 * 24 * HOUR,
        duplicate_window=120,
        allow_direct=True,
    ),
)

log = structlog.get_logger()


async def ensure_streams(js: JetStreamContext) -> None:
    """Make the streams, and set back what differs from `STREAMS` where the server allows it.

    Any number of processes may do so at once, at start and after each reconnect. Raises `SetupError` when the server
    has no JetStream, no room, or a stream of the same name with another retention.
    """
    for wanted in STREAMS:
        await ensure_stream(js, wanted)


async def streams_as_they_are(js: JetStreamContext) -> dict[str, list[str] | None]:
    """Of each of our streams, the settings that differ from ours; `None` for one that is not there. Changes nothing.

    Raises what JetStream raises when it does not answer.
    """
    found: dict[str, list[str] | None] = {}
    for wanted in STREAMS:
        try:
            found[_name(wanted)] = sorted(_drift(wanted, (await js.stream_info(_name(wanted))).config))
        except js_errors.NotFoundError:
            found[_name(wanted)] = None
    return found


async def standing(js: JetStreamContext, stream: str) -> dict[str, int]:
    """How many messages stand in `stream`, by subject (the first 100,000 that the server tells of).

    Raises what JetStream raises when it does not answer, or the stream is not there.
    """
    return (await js.stream_info(stream, subjects_filter=">")).state.subjects or {}


async def ensure_stream(js: JetStreamContext, wanted: StreamConfig) -> None:
    """Make one stream, or set it back. Raises `SetupError`, see `ensure_streams`."""
    for attempt in range(ATTEMPTS):
        try:
            await _ensure_once(js, wanted)
        except (TimeoutError, nats_errors.NoRespondersError, js_errors.ServiceUnavailableError) as error:
            if _refused(js, "CREATE", wanted):
                raise SetupError(
                    f"the stream {wanted.name} is not there, and this user may not make it: the scheduler does"
                ) from error
            # A server that has just started answers before its JetStream does.
            if attempt == ATTEMPTS - 1:
                raise SetupError(
                    f"JetStream does not answer ({str(error) or type(error).__name__}): start nats-server with "
                    "JetStream enabled (`nats-server -js`), or use `perdure up`."
                ) from error
            await asyncio.sleep(0.05 * 2**attempt)
        except js_errors.APIError as error:
            raise SetupError(
                f"NATS refuses the stream {wanted.name}: {error.description}. Check the JetStream limits of the "
                "server (jetstream { max_file_store }) and the subjects of its other streams."
            ) from error
        else:
            return


async def _ensure_once(js: JetStreamContext, wanted: StreamConfig) -> None:
    try:
        found = (await js.stream_info(_name(wanted))).config
    except js_errors.NotFoundError:
        try:
            await js.add_stream(wanted)
        except js_errors.BadRequestError as error:
            if error.err_code != NAME_TAKEN:
                raise
            found = (await js.stream_info(_name(wanted))).config
        else:
            log.info("made a stream", action="streams.made", stream=wanted.name)
            return
    await _set_back(js, wanted, found)


async def _set_back(js: JetStreamContext, wanted: StreamConfig, found: StreamConfig) -> None:
    drift = _drift(wanted, found)
    if not drift:
        return
    if "retention" in drift:
        raise SetupError(
            f"the stream {wanted.name} exists with retention {found.retention!s}, and Perdure needs "
            f"{wanted.retention!s}, which cannot be changed in place: remove it (`nats stream rm {wanted.name}`) "
            "or use another NATS account."
        )
    if _refused(js, "UPDATE", wanted):
        return
    try:
        await js.update_stream(replace(found, **drift))
    except TimeoutError:
        if not _refused(js, "UPDATE", wanted):
            raise
    except js_errors.BadRequestError as error:
        log.warning(
            "a stream keeps settings that differ from ours",
            action="streams.drift_kept",
            stream=wanted.name,
            settings=sorted(drift),
            reason=error.description,
        )
    else:
        log.info("set a stream back", action="streams.updated", stream=wanted.name, settings=sorted(drift))


def _refused(js: JetStreamContext, verb: str, wanted: StreamConfig) -> bool:
    """Whether NATS has refused us to make or change the stream; nobody answers such a request."""
    nc: Any = js._nc  # noqa: SLF001 -- nats-py shows it nowhere else
    name = stream_at(nc, _name(wanted)).upper()
    return f"$JS.API.STREAM.{verb}.{name}" in getattr(nc, "refused", ())


def _drift(wanted: StreamConfig, found: StreamConfig) -> dict[str, Any]:
    """What we chose and the server has otherwise, with our values."""
    return {key: value for key, value in _given(wanted).items() if getattr(found, key) != value}


def _given(config: StreamConfig) -> dict[str, Any]:
    """The fields that we chose; the others are the server's to fill in."""
    default = StreamConfig()
    chosen = {key: value for key, value in vars(config).items() if value != getattr(default, key)}
    return {"discard": config.discard, **chosen}


def _name(config: StreamConfig) -> str:
    return str(config.name)
