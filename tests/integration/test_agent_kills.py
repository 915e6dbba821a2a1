from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.agent_support import results, spoken, transcript
from tests.platform import in_process
from tests.support import eventually

ROOT = Path(__file__).parents[2]
STEP = ("step.before", "step.after_effect", "step.before_commit", "step.after_commit")
TRANSACTION = (*STEP, "transaction.written")
# Each point of each step of the conversation: seven model calls, six tools, six appends, between claim and end.
EVERY = [
    *(f"{point}//1" for point in ("claim.before", "claim.after", "claim.begun", "end.before", "end.after")),
    *(f"{point}/open turn/1" for point in STEP),
    *(f"{point}/model/{n}" for n in range(1, 8) for point in STEP),
    *(f"{point}/tool:write/{n}" for n in range(1, 7) for point in STEP),
    *(f"{point}/append/{n}" for n in range(1, 7) for point in TRANSACTION),
]
# All of them take minutes (PERDURE_ALL_KILLS): a usual run takes one of each kind, all over the conversation.
SOME = [
    "step.after_commit/open turn/1", "step.after_effect/tool:write/2", "step.before_commit/model/3",
    "step.after_commit/tool:write/4", "transaction.written/append/6", "step.after_commit/model/7",
]  # fmt: skip
POINTS = EVERY if os.environ.get("PERDURE_ALL_KILLS") else SOME


async def spawn(settings, **more: str) -> asyncio.subprocess.Process:
    environ = {
        **os.environ,
        "NATS_URL": settings.nats_url,
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "PERDURE_LEASE_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tests/integration/agent_program.py"), env=environ, cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("at", POINTS)
async def test_a_conversation_of_six_tools_is_the_same_wherever_its_process_is_killed(settings, nc, pool, at):
    await pool.execute("CREATE TABLE ledger (key text PRIMARY KEY, n int); CREATE TABLE tries (n int)")
    processes = []
    async with in_process(settings.model_copy(update={"lease_seconds": 1.0}), nc) as platform:
        try:
            processes.append(await spawn(settings, KILL_AT=at))
            run = await platform.start_run("six", "write six lines", session_id="s")
            async with asyncio.timeout(30):
                assert await processes[0].wait() == -signal.SIGKILL
            processes.append(await spawn(settings))
            await eventually(lambda: over(platform, run), timeout=30)
            assert (await platform.run(run))["output"] == "line 0, line 1, line 2, line 3, line 4, line 5"
        finally:
            for process in processes:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
    said = await transcript(pool, "s")
    assert results(said) == [f"line {n}" for n in range(6)]
    assert [role for role, _ in spoken(said)] == ["user", "assistant"]
    assert [row["n"] for row in await pool.fetch("SELECT n FROM ledger ORDER BY n")] == [0, 1, 2, 3, 4, 5]
    tries = await pool.fetchval("SELECT count(*) FROM tries")
    assert 6 <= tries <= 7, "only the step in flight may run again"


async def over(platform, run):
    found = await platform.run(run)
    assert found["status"] != "failed", found
    return found["status"] == "completed"
