"""kill -9 of teams in the middle of a member's turn: nobody speaks twice, and nobody is left out."""

from __future__ import annotations

import signal

from perdure.agent.registry import live_agents
from tests.agents.team_program import NAMES, ORDER
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually

PROGRAM = "tests.agents.team_program"
PATIENCE = 60.0  # seconds: a busy machine takes its time to start a process


async def test_a_killed_team_goes_on_at_the_same_speaker(settings, nc, pool, tmp_path):
    await pool.execute("CREATE TABLE spoken (team text, name text, turn int)")
    await pool.execute("CREATE TABLE choices (at int); CREATE TABLE go (now bool)")

    def bob_waits(times):
        async def look():
            asked = "SELECT team FROM spoken WHERE name = 'bob' AND turn = 2"
            return sorted(row["team"] for row in await pool.fetch(asked)) == sorted([*ORDER] * times)

        return look

    async def there():
        return {one["agent"] for one in await live_agents(pool)}

    async def all_gone():
        return not await there()

    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        first = started.start(PROGRAM, "first")
        runs = {team: await platform.start_run(team, team) for team in ORDER}
        await eventually(bob_waits(1), timeout=PATIENCE)
        assert {*ORDER, *NAMES} <= await there()
        first.send(signal.SIGKILL)
        await eventually(all_gone, timeout=PATIENCE)
        started.start(PROGRAM, "second")
        await eventually(bob_waits(2), timeout=PATIENCE)
        await pool.execute("INSERT INTO go VALUES (TRUE)")

        async def transcript(team):
            found = await platform.run(runs[team])
            assert found["status"] != "failed", found
            return found["output"]["transcript"] if found["status"] == "completed" else None

        said = {team: await eventually(lambda team=team: transcript(team), timeout=PATIENCE) for team in ORDER}
    for team, order in ORDER.items():
        assert [one["agent"] for one in said[team]] == list(order)
        turns = [(name, order[: at + 1].count(name)) for at, name in enumerate(order)]
        assert [one["content"] for one in said[team]] == [f"{name}{turn}" for name, turn in turns]
        asked = await pool.fetch("SELECT name, turn FROM spoken WHERE team = $1", team)
        assert sorted(map(tuple, asked)) == sorted([*turns, ("bob", 2)]), "only the turn under way is taken again"
    choices = [row["at"] for row in await pool.fetch("SELECT at FROM choices ORDER BY at")]
    assert choices == list(range(len(ORDER["chosen"]))), "each speaker is chosen once"
