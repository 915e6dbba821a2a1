"""Calls back whoever asked to be told of a run's end: over HTTP, signed, or on a NATS subject. At least once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import asyncpg
import orjson
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client

from perdure.bus.namespace import subject_at
from perdure.config.secrets import resolve_secret
from perdure.engine import runs
from perdure.engine.codec import decode
from perdure.errors import SetupError
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, Unreadable, vault_of
from perdure.webhooks import NotDelivered, WebhookSender
from perdure.webhooks.signing import SHORTEST

_SQL = load_queries("ends.sql")
log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 0.25
AT_ONCE: Final = 32
TAKEN_FOR: Final = 60.0  # seconds, longer than any delivery takes
LONGEST_PAUSE: Final = 3600.0
LARGEST: Final = 1_000_000  # bytes of an outcome
MARGIN: Final = 16_384

End = tuple[asyncpg.Record, dict[str, Any]]  # a run's row, and its outcome


class Callbacks:
    """Delivers the rows of the outbox `callbacks`. Any number of schedulers may."""

    def __init__(self, pool: Pool, nats: Client, settings: Settings) -> None:
        self._pool = pool
        self._nats = nats
        self._settings = settings
        self.outcomes: Counter[str] = Counter()
        self._sender = WebhookSender(private=settings.callback_private, timeout=settings.callback_timeout)

    async def run(self) -> None:
        """Deliver until cancelled."""
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                room = AT_ONCE - len(under_way)
                try:
                    taken = await self._begin(room, under_way)
                except CONNECTION_ERRORS as error:
                    log.info("callbacks wait", action="callback.waits", error=type(error).__name__)
                    taken = 0
                if len(under_way) >= AT_ONCE:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                elif taken < room:
                    await asyncio.sleep(LOOK_EVERY)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await self._sender.close()

    def readings(self) -> Iterator[Reading]:
        """What is counted of callbacks."""
        for outcome in ("delivered", "retried", "given_up"):
            yield "perdure_callbacks_total", (outcome,), self.outcomes[outcome]

    async def _begin(self, room: int, under_way: set[asyncio.Task[None]]) -> int:
        """Try those that are due, at most `room`; how many. Each by itself, so that none waits for a slow receiver."""
        rows = await self._pool.fetch(_SQL["take_callbacks"], room, TAKEN_FOR)
        if rows:
            ends = await self._pool.fetch(_SQL["ends"], [row["run_id"] for row in rows])
            room = min(LARGEST, self._nats.max_payload - MARGIN)
            replies = await runs.outcomes(self._pool, ends, room)
            found = {end["run_id"]: (end, reply) for end, reply in zip(ends, replies, strict=True)}
            for row in rows:
                task = asyncio.create_task(self._one(row, found.get(row["run_id"])))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        return len(rows)

    async def _one(self, row: asyncpg.Record, run: End | None) -> None:
        try:
            try:
                target = decode(row["target"])
                if "push" in target:
                    await self._push(row, target["push"], run)
                else:
                    await self._send(target, row["callback_id"], _body(row, run))
            except NotDelivered as error:
                await self._failed(row, error)
            else:
                self.outcomes["delivered"] += 1
                await self._pool.execute(_SQL["callback_delivered"], row["callback_id"])
        except CONNECTION_ERRORS as error:  # its row is taken again after a minute
            log.info("callback not noted", action="callback.not_noted", error=type(error).__name__)
        except Exception:
            log.exception("callback failed", action="callback.fault", run_id=row["run_id"])

    async def _send(self, target: dict[str, Any], callback_id: str, body: bytes) -> None:
        if "subject" in target:
            await self._publish(target["subject"], callback_id, body)
            return
        await self._sender.send(target["url"], callback_id, body, await _secret(target["secret"]))

    async def _push(self, row: asyncpg.Record, config_id: str, run: End | None) -> None:
        """A push notification of A2A: the task, signed with the token of whoever asked for it, else with our secret."""
        asked = await self._pool.fetchrow(_SQL["push_of"], row["run_id"], config_id)
        if asked is None or run is None:
            raise NotDelivered("its push notification configuration is gone", permanent=True)
        try:
            vault = vault_of(self._pool)
            await vault.ready(texts=[asked["secrets"]])
            said = orjson.loads(vault.unseal(asked["secrets"], Spot("push", row["run_id"], config_id)))
        except Unreadable as error:
            raise NotDelivered(str(error)) from None
        token, credentials = said.get("token", ""), said.get("credentials")
        more = {"X-A2A-Notification-Token": token} if token else {}
        if credentials:
            more["Authorization"] = f"{said['scheme']} {credentials}"
        secret = token if len(token) >= SHORTEST else await _secret(self._settings.callback_secret)
        # loaded with the first of them: who has none does not pay for the protocol's library
        library = await asyncio.to_thread(import_module, "perdure.edge.a2a_tasks")
        body = library.pushed(_task(row, run), asked["form"])
        await self._sender.send(asked["url"], row["callback_id"], body, secret, more)

    async def _publish(self, subject: str, callback_id: str, body: bytes) -> None:
        """A subject that a stream covers is delivered to when the stream has acknowledged it."""
        headers = {"webhook-id": callback_id, "Nats-Msg-Id": callback_id}
        try:
            wanted = orjson.dumps({"subject": subject_at(self._nats, subject)})
            streams = orjson.loads((await self._nats.request("$JS.API.STREAM.NAMES", wanted, timeout=2)).data)
            if streams.get("streams"):
                answer = orjson.loads((await self._nats.request(subject, body, timeout=2, headers=headers)).data)
                if "error" in answer:
                    raise NotDelivered(f"its stream refused it: {answer['error'].get('description', '')}")
            else:
                await self._nats.publish(subject, body, headers=headers)
                await self._nats.flush(timeout=2)
        except (nats_errors.Error, TimeoutError) as error:
            raise NotDelivered(f"NATS does not answer ({type(error).__name__})") from None

    async def _failed(self, row: asyncpg.Record, error: NotDelivered) -> None:
        last = error.permanent or row["attempts"] >= self._settings.callback_max_attempts
        self.outcomes["given_up" if last else "retried"] += 1
        pause = min(2.0 ** (row["attempts"] - 1), LONGEST_PAUSE) * (0.5 + random.random() / 2)  # noqa: S311 -- jitter
        wait = None if last else max(pause, error.retry_after or 0.0)
        log.warning(
            "callback not delivered",
            action="callback.given_up" if last else "callback.retry",
            run_id=row["run_id"],
            attempt=row["attempts"],
            reason=str(error),
        )
        await self._pool.execute(_SQL["callback_failed"], row["callback_id"], str(error)[:1000], wait)


async def _secret(reference: str | None) -> str:
    if reference is None:
        raise NotDelivered("PERDURE_CALLBACK_SECRET is not set, and nothing else was given to sign it with")
    try:
        return await resolve_secret(reference)
    except (SetupError, ValueError) as error:
        raise NotDelivered(str(error)) from None


def _task(row: asyncpg.Record, end: End) -> dict[str, Any]:
    """The run as it was when it stopped; without the outcome when it has gone on since."""
    run, reply = end
    said = {"run_id": row["run_id"], "session_id": run["session_id"], "status": row["status"]}
    if run["status"] == row["status"] and (run["end_seq"] or 0) == row["end_seq"]:
        said |= {key: reply[key] for key in ("output", "error") if key in reply}
    return said


def _body(row: asyncpg.Record, end: End | None) -> bytes:
    """What the receiver reads; without the outcome when the run has gone on since, or is gone.

    An output too large for a message is named in `large`; `run.get` has it.
    """
    data: dict[str, Any] = {"run_id": row["run_id"], "status": row["status"]}
    moment = row["created_at"]
    if end is not None:
        run, reply = end
        data |= {"agent": run["agent_name"], "workflow": run["workflow"], "session_id": run["session_id"]}
        if run["end_seq"] == row["end_seq"]:
            moment = run["finished_at"]
            data |= {key: reply[key] for key in ("output", "error", "large") if key in reply}
    return orjson.dumps({"type": f"run.{row['status']}", "timestamp": moment.isoformat(), "data": data})
