"""Slots that a process keeps free for schedulers, which claim runs for it as they accept them: in the same commit.

A scheduler whose run had to go the long way (a wake-up, then a claim) asks the agent's processes for slots. What is
granted is a running total, as in the flow control of HTTP/2 (RFC 9113, 5.2): a message that is lost takes nothing with
it for long, as the next one says how much has been used in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from nats.aio.msg import Msg

from perdure import subjects
from perdure.engine.rows import Holder, Start, held
from perdure.store.failures import CONNECTION_ERRORS

if TYPE_CHECKING:
    from perdure.engine.claims import Claims
    from perdure.engine.worker import Worker

log = structlog.get_logger(__name__)

MOST: Final = 256  # slots that one scheduler is granted at a time
SECONDS: Final = 5.0  # for which a grant is good
GRACE: Final = 2.0  # seconds for which its slots stay reserved after that: runs may still be on their way
SCHEDULERS: Final = 64  # that may have slots at a time, or had some before they were started again
WORTH: Final = 16  # slots below which a process keeps none free


@dataclass(slots=True)
class _Grant:
    limit: int = 0  # runs that the scheduler may have claimed for this process in all
    used: int = 0  # runs that it has, as far as is known here
    until: float = 0.0  # loop time

    @property
    def open(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a process grants a scheduler: `limit` runs in all, within `seconds`, of these workflows."""

    process_id: str
    limit: int
    seconds: float
    config_hash: str
    config_revision: int
    workflows: dict[str, tuple[str, str]]  # the newest version of each, and its source hash

    def dump(self) -> bytes:
        """As a message."""
        return orjson.dumps(self)


def read_granted(data: bytes) -> Granted:
    """The message of a grant. Raises `ValueError`, `KeyError` or `TypeError` when it is none."""
    said: dict[str, Any] = orjson.loads(data)
    workflows = {str(name): (str(version), str(source)) for name, (version, source) in said["workflows"].items()}
    return Granted(
        str(said["process_id"]), int(said["limit"]), float(said["seconds"]), str(said["config_hash"]),
        int(said["config_revision"]), workflows,
    )  # fmt: skip


class Slots:
    """The slots that this process has granted, and the runs that come into them. `asked()`: wake-ups on their way."""

    def __init__(self, worker: Worker, claims: Claims, asked: Callable[[], int]) -> None:
        self._worker = worker
        self._asked = asked
        self._claims = claims
        self._process_id = ""
        self._grants: dict[str, _Grant] = {}  # by scheduler
        self._wanted_until = 0.0  # loop time
        self.deaf = False  # what a kill does at once

    @property
    def open(self) -> int:
        """How many slots are granted and not filled."""
        now = self._worker.loop.time()
        return sum(grant.open for grant in self._grants.values() if grant.until > now)

    @property
    def kept(self) -> int:
        """How many slots are for schedulers now, granted or not: most of what is free, while one of them wants some.

        In a process that has few it is none: what waits for long comes by wake-ups, and is not to wait longer.
        """
        worker = self._worker
        if worker.settings.run_slots < WORTH or worker.loop.time() > self._wanted_until:
            return 0
        return max(0, worker.free) * 3 // 4

    async def wanted(self, message: Msg) -> None:
        """A scheduler wants slots."""
        scheduler = message.data.decode("ascii", "replace")
        if subjects.RUN_ID.fullmatch(scheduler) is None:
            log.warning("not a scheduler; dropped", action="slots.garbage", subject=message.subject)
            return
        if scheduler not in self._grants and not self._has_place():
            log.warning("too many schedulers; this one gets no slots", action="slots.crowd", scheduler=scheduler)
            return
        await self._grant(scheduler)

    def _has_place(self) -> bool:
        """Whether one more scheduler may have slots; those of whom nothing was heard for long make room."""
        if len(self._grants) >= SCHEDULERS:
            now = self._worker.loop.time()
            self._grants = {name: grant for name, grant in self._grants.items() if grant.until > now}
        return len(self._grants) < SCHEDULERS

    async def _grant(self, scheduler: str) -> None:
        worker = self._worker
        if not worker.takes or worker.alone is not None:
            return
        try:
            config = await self._claims.newest_config()
        except CONNECTION_ERRORS as error:
            log.info("no slots granted", action="slots.later", error=type(error).__name__)
            return
        if self._process_id != worker.process_id:  # taken for lost in the meantime: a new count
            self._process_id = worker.process_id
            self._grants.clear()
        now = worker.loop.time()
        self._wanted_until = now + SECONDS + GRACE
        grant = self._grants.setdefault(scheduler, _Grant())
        if grant.until <= now:
            grant.limit = grant.used
        more = min(MOST - grant.open, self.kept - self.open, worker.free - self._asked() - self.open)
        if more <= 0 and grant.until - now > GRACE + SECONDS / 2:
            return
        grant.limit += max(0, more)
        grant.until = now + SECONDS + GRACE
        offer = worker.offer
        newest = zip(offer.names, offer.versions, offer.hashes, offer.newest, strict=True)
        said = Granted(
            self._process_id, grant.limit, SECONDS, config.hash, config.revision,
            {name: (version, source) for name, version, source, is_newest in newest if is_newest},
        )  # fmt: skip
        worker.events.outgoing.put(subjects.slots_granted(scheduler, worker.agent_name), said.dump(), soon=True)

    def withdraw(self) -> None:
        """No more runs may come; those that do are given back."""
        for scheduler, grant in self._grants.items():
            grant.limit = grant.used
            said = Granted(self._process_id, 0, 0.0, "", 0, {})
            self._worker.events.outgoing.put(subjects.slots_granted(scheduler, self._worker.agent_name), said.dump())
        self._worker.events.outgoing.flush()

    async def filled(self, message: Msg) -> None:
        """A scheduler has claimed runs for this process."""
        if self.deaf:
            return
        try:
            said = orjson.loads(message.data)
            process_id, scheduler, used = str(said["process_id"]), str(said["scheduler"]), int(said["used"])
            config = str(said["config_hash"]), int(said["config_revision"])
            began = datetime.fromisoformat(said["since"])
            runs = [held(self._worker.agent_name, config, began, each) for each in said["runs"]]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("not runs; dropped", action="slots.garbage", subject=message.subject, error=str(error))
            return
        if process_id != self._worker.process_id:
            return  # taken for lost in the meantime: what was claimed for it is given to others
        grant = self._grants.get(scheduler)
        if grant is not None:
            grant.used = max(grant.used, used)
        await self._claims.begin_held(runs, process_id)
        if grant is not None and (grant.open <= MOST // 2 or grant.until < self._worker.loop.time() + SECONDS):
            await self._grant(scheduler)


def filled(holder: Holder, scheduler: str, used: int, starts: Sequence[Start]) -> bytes:
    """The message to `holder` of `starts`, which it holds since one commit; `used`: of its slots, in all."""
    return orjson.dumps(
        {
            "process_id": holder.process_id,
            "scheduler": scheduler,
            "used": used,
            "config_hash": holder.config_hash,
            "config_revision": holder.config_revision,
            "since": starts[0].held_since,
            "runs": [start.held for start in starts],
        }
    )
