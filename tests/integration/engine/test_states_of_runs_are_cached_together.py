"""The newest state of each run is in Redis soon, however many there are, and for a bounded time."""

from __future__ import annotations

import asyncio

from perdure.engine.hot_state import AT_ONCE, KEEP_FOR, HotState, key_of
from perdure.store.redis import key_of as in_namespace
from tests.support import eventually


async def test_the_newest_state_of_every_run_is_cached_for_a_while(redis):
    states = HotState(redis)
    runs = [f"r{number}" for number in range(2 * AT_ONCE + 1)]
    for run_id in runs:
        states.note(run_id, "a", "running", 1)
    states.note(runs[-1], "a", "completed", 3)
    writing = asyncio.create_task(states.run())
    try:
        await eventually(lambda: states.get(runs[-1]))
    finally:
        writing.cancel()
    found = [await states.get(run_id) for run_id in (*runs[:2], *runs[AT_ONCE - 1 : AT_ONCE + 1], runs[-1])]
    assert [(each["run_id"], each["status"], each["seq"]) for each in found if each] == [
        ("r0", "running", 1),
        ("r1", "running", 1),
        (f"r{AT_ONCE - 1}", "running", 1),
        (f"r{AT_ONCE}", "running", 1),
        (runs[-1], "completed", 3),
    ]
    assert KEEP_FOR - 60 < await redis.ttl(in_namespace(redis, key_of("r0"))) <= KEEP_FOR
