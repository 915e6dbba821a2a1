"""The slots that agents' processes keep free for this scheduler: an accepted run is claimed for one of them at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.outgoing import Outgoing
from perdure.engine.rows import Holder, Start
from perdure.engine.slots import Granted, filled, read_granted

log = structlog.get_logger(__name__)

ASK_EVERY: Final = 0.05  # seconds between two requests for the slots of one agent
AGENTS: Final = 1000  # of which it is known when they were asked; a start may name any
LARGEST: Final = 65_536  # characters of a task that goes to its process with the claim
AT_ONCE: Final = 131_072  # characters of tasks in one message: at most 4 bytes each, of the 1 MiB that NATS takes


@dataclass(slots=True)
class _Grant:
    said: Granted
    until: float  # loop time
    holders: dict[str, Holder]  # by workflow
    used: int = 0

    @property
    def open(self) -> int:
        return self.said.limit - self.used


class Slots:
    """What was granted, and what of it is used. See `perdure.engine.slots`."""

    def __init__(self, nats: Client, outgoing: Outgoing) -> None:
        self._nats = nats
        self._outgoing = outgoing
        # As processes address this scheduler, and count what it has used: never that of one before.
        self.name = uuid4().hex
        self._grants: defaultdict[str, dict[str, _Grant]] = defaultdict(dict)  # by agent and process
        self._asked: dict[str, float] = {}  # loop time, by agent
        self.filled = 0

    async def open(self) -> None:
        """Hear of grants."""
        await self._nats.subscribe(subjects.slots_granted(self.name, "*"), cb=self._granted)

    async def _granted(self, message: Msg) -> None:
        agent = message.subject.rpartition(".")[2]
        try:
            said = read_granted(message.data)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("not a grant; dropped", action="slots.garbage", subject=message.subject, error=str(error))
            return
        if not said.process_id.startswith(f"{agent}."):
            log.warning("a grant for another agent; dropped", action="slots.garbage", subject=message.subject)
            return
        grants, now = self._grants[agent], asyncio.get_running_loop().time()
        before = grants.get(said.process_id)
        holders = {
            workflow: Holder(said.process_id, version, source, said.config_hash, said.config_revision)
            for workflow, (version, source) in said.workflows.items()
        }
        grants[said.process_id] = _Grant(said, now + said.seconds, holders, before.used if before else 0)
        if len(grants) > 1:  # what lost and replaced processes granted
            for process_id in [each for each, grant in grants.items() if grant.until < now - 60]:
                del grants[process_id]

    def place(self, starts: Sequence[Start]) -> None:
        """Give each start the process that shall hold it, where there is one with a slot for it; as of now."""
        sessions: set[tuple[str, str]] = set()
        connected, now = self._nats.is_connected, asyncio.get_running_loop().time()
        for start in starts:
            start.holder = start.held = None
            if start.options is not None or len(start.task) > LARGEST or not connected:
                continue
            if start.session_id is not None:
                turn = (start.agent_name, start.session_id)
                if turn in sessions:
                    continue  # the second of two turns that came together waits for the first
                sessions.add(turn)
            start.holder = self._holder(start.agent_name, start.workflow, now)

    def _holder(self, agent: str, workflow: str, now: float) -> Holder | None:
        best: _Grant | None = None
        for grant in self._grants.get(agent, {}).values():
            fits = grant.open > 0 and grant.until > now and workflow in grant.holders
            if fits and (best is None or grant.open > best.open):
                best = grant
        if best is None:
            return None
        best.used += 1
        return best.holders[workflow]

    def settle(self, starts: Iterable[Start]) -> None:
        """After a commit, or none: slots that were not filled are free again."""
        for start in starts:
            if start.holder is not None and start.held is None:
                grant = self._grants[start.agent_name].get(start.holder.process_id)
                if grant is not None:
                    grant.used -= 1

    def tell(self, starts: Sequence[Start]) -> None:
        """Send the runs of one commit that are claimed to the processes that hold them."""
        told: defaultdict[tuple[str, Holder], list[Start]] = defaultdict(list)
        for start in starts:
            if start.holder is not None and start.held is not None:
                told[start.agent_name, start.holder].append(start)
        for (agent, holder), held in told.items():
            self.filled += len(held)
            used = self._grants[agent][holder.process_id].used
            for part in _parts(held):
                payload = filled(holder, self.name, used, part)
                self._outgoing.put(subjects.process_claimed(holder.process_id), payload, soon=True)

    def ask(self, agent: str) -> None:
        """A run of `agent` goes the long way: the next ones need not."""
        now = asyncio.get_running_loop().time()
        if self._asked.get(agent, 0.0) + ASK_EVERY < now:
            if len(self._asked) >= AGENTS:
                self._asked.clear()
            self._asked[agent] = now
            self._outgoing.put(subjects.slots_wanted(agent), self.name.encode())


def _parts(starts: list[Start]) -> Iterable[list[Start]]:
    part: list[Start] = []
    size = 0
    for start in starts:
        if part and size + len(start.task) > AT_ONCE:
            yield part
            part, size = [], 0
        part.append(start)
        size += len(start.task)
    yield part
