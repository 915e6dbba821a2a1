"""kill -9 of agents' processes while they talk: every transcript is whole, in order, and its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

import orjson

from tests.integration.agent_support import AGENTS, configure, output, results, transcript
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually

SESSIONS, TURNS, REPLICAS, KILLS = 50, 20, 3, 6


async def live(pool, agent):
    return await pool.fetchval("SELECT count(*) FROM processes WHERE state = 'live' AND agent_name = $1", agent)


async def test_fifty_sessions_of_twenty_turns_stay_in_order_over_replicas_that_are_killed(settings, nc, pool, tmp_path):
    chance = random.Random(7)
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        running = [started.start("tests.agents.echo_talker", f"talker-{n}") for n in range(REPLICAS)]
        await eventually(lambda: live(pool, "talker"), timeout=30)

        async def talk(session):
            for turn in range(TURNS):
                await platform.start_run("talker", f"{session}:{turn}", session_id=session, run_id=f"{session}-{turn}")

        async def kill():
            for number in range(KILLS):
                done = SESSIONS * TURNS * (number + 1) // (KILLS + 2)

                async def so_far(done=done):
                    return await pool.fetchval("SELECT count(*) FROM runs WHERE status = 'completed'") >= done

                await eventually(so_far, timeout=120)
                victim = running.pop(chance.randrange(len(running)))
                victim.send(signal.SIGKILL)
                running.append(started.start("tests.agents.echo_talker", f"talker-{REPLICAS + number}"))

        await asyncio.gather(kill(), *(talk(f"s{number}") for number in range(SESSIONS)))

        async def all_done():
            return await pool.fetchval("SELECT count(*) FROM runs WHERE status = 'completed'") == SESSIONS * TURNS

        await eventually(all_done, timeout=120)
    for number in range(SESSIONS):
        said = [(one["role"], one["content"]) for one in await transcript(pool, f"s{number}")]
        expected = []
        for turn in range(TURNS):
            expected += [("user", f"s{number}:{turn}"), ("assistant", f"{2 * turn + 1} s{number}:{turn}")]
        assert said == expected


async def test_a_line_is_activated_although_every_process_is_killed_in_between(
    settings, nc, pool, tmp_path, monkeypatch
):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)
    await configure(pool, "activation", step_seconds="0.5")
    program = str(AGENTS / "activation.py")

    async def agent(platform):
        environ = {
            **os.environ,
            "NATS_URL": settings.nats_url,
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "PERDURE_HOME": str(tmp_path),
            "PYTHONPATH": str(AGENTS.parent),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable, program, env=environ, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )

    wish = "activate line Anna, activate line Bob, activate line Eve"
    async with in_process(settings, nc) as platform:
        first = await agent(platform)
        try:
            scheduled = await output(platform, "activation", wish, session_id="s")
            assert scheduled.count("scheduled") == 3
            before = await output(platform, "activation", "is it done?", session_id="s")
            assert before.count("Background work: activate_line") == 3
            assert "is active" not in before
        finally:
            first.kill()
            await first.wait()
    # config manager, scheduler and agent are gone; only the servers' data are there
    async with in_process(settings, nc) as platform:
        second = await agent(platform)
        try:

            async def all_done():
                return await pool.fetchval("SELECT count(*) FROM session_results WHERE status = 'completed'") == 3

            await eventually(all_done, timeout=40)
            after = await output(platform, "activation", "is it done now?", session_id="s", timeout=40)
        finally:
            second.terminate()
            await second.wait()
    for customer in ("Anna", "Bob", "Eve"):
        assert f"the line of {customer} is active" in after
    told = [orjson.loads(one) for one in results(await transcript(pool, "s"))]
    assert {one["call_id"] for one in told[:3]} == {one["call_id"] for one in told[3:]}
    assert len(told) == 6, "each result comes in once"
