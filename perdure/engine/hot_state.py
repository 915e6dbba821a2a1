"""The newest state of runs in Redis, for pages and for readers while Postgres is away. A cache: nothing relies on it.

Changes are coalesced: however often a run moves, Redis hears of it at most four times a second, with all others.
"""

from __future__ import annotations

import asyncio
import time

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.store.redis import key_of as in_namespace

log = structlog.get_logger(__name__)

KEEP_FOR = 24 * 3600  # seconds
PAUSE = 0.25
AT_ONCE = 1000  # states in a command, during which Redis hears nobody else
# Of a command for each, the client's part alone would cost a process more than to write a step to the journal.
SET_ALL = "for i, key in ipairs(KEYS) do redis.call('set', key, ARGV[i + 1], 'ex', ARGV[1]) end"


def key_of(run_id: str) -> str:
    """The Redis key of a run's state: JSON with `status`, `agent`, `seq` (of its journal) and `time`."""
    return f"perdure:run:{run_id}"


class HotState:
    """Writes run states behind the work, never in its way."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._set_all = redis.register_script(SET_ALL)
        self._prefix = in_namespace(redis, "")
        self._changed: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._failing = False

    def note(self, run_id: str, agent: str, status: str, seq: int) -> None:
        """A run has a new state."""
        if self._failing and len(self._changed) > 50_000:
            return  # Redis is away: the newest states come when they change again
        said = {"run_id": run_id, "agent": agent, "status": status, "seq": seq, "time": time.time()}
        self._changed[self._prefix + key_of(run_id)] = orjson.dumps(said)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            try:
                keys = list(changed)
                for some in (keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE)):
                    await self._set_all(keys=some, args=[KEEP_FOR, *(changed[key] for key in some)])
            except (RedisError, OSError, TimeoutError) as error:
                if not self._failing:
                    log.warning("run states not cached", action="hot_state.failed", error=type(error).__name__)
                self._failing = True
            else:
                self._failing = False
            await asyncio.sleep(PAUSE)

    async def get(self, run_id: str) -> dict[str, object] | None:
        """The last known state of a run, or `None`; raises what redis raises."""
        text = await self._redis.get(self._prefix + key_of(run_id))
        return None if text is None else orjson.loads(text)
