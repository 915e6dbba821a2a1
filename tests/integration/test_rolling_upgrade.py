"""Old and new side by side, with runs in flight: what docs/how-to/upgrade.md says of an upgrade."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import orjson
import pytest
from nats.aio.client import Client

from perdure import BaseAgent, workflow
from perdure.agent.process import AgentProcess
from perdure.doctor import examine
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.migrate import check
from tests.platform import InProcess, in_process
from tests.support import eventually

WHO_DID: list[tuple[str, str, str]] = []


class Old(BaseAgent):
    name = "clerk"

    @workflow(version="1")
    async def run(self, ctx: Any, task: Any) -> str:
        await ctx.step("begin", self.note, "old", "begin", task)
        await ctx.wait_signal("go")
        return str(await ctx.step("end", self.note, "old", "end", task))

    async def note(self, who: str, what: str, task: str) -> str:
        WHO_DID.append((who, what, task))
        return f"{who} {task}"


class New(Old):
    name = "clerk"

    @workflow(name="run", version="1")
    async def run_as_before(self, ctx: Any, task: Any) -> str:
        return str(await Old.run(self, ctx, task))

    @workflow(version="2")
    async def run(self, ctx: Any, task: Any) -> str:
        return str(await ctx.step("all", self.note, "new", "all", task))


async def waiting(platform: InProcess, run_id: str) -> None:
    async def waits() -> bool:
        return (await platform.run(run_id))["status"] == "waiting"

    await eventually(waits, timeout=30)


async def ended(platform: InProcess, run_id: str) -> Any:
    async def output() -> Any:
        run = await platform.run(run_id)
        return run["status"] == "completed" and run["output"]

    return await eventually(output, timeout=30)


async def test_runs_of_the_old_code_end_while_its_replicas_are_replaced_one_by_one(settings: Settings, nc: Client):
    WHO_DID.clear()
    async with in_process(settings, nc, Old, Old) as platform:
        runs = [await platform.start_run("clerk", f"task {number}", run_id=f"r{number}") for number in range(6)]
        for run_id in runs:
            await waiting(platform, run_id)
        old = [service for service in platform.services if isinstance(service, AgentProcess)]
        for replica in old:  # one more of the new, then one less of the old: a rolling update
            await platform.agent(New)
            await replica.stop()
            platform.services.remove(replica)
            run_id = runs.pop()
            await platform.request("run.signal", {"run_id": run_id, "name": "go"})
            assert await ended(platform, run_id) == f"old task {run_id[1:]}", "it ends as it began"
        assert (await platform.ask("clerk", "another"))["output"] == "new another"
        for run_id in runs:
            await platform.request("run.signal", {"run_id": run_id, "name": "go"})
            assert await ended(platform, run_id) == f"old task {run_id[1:]}"
        assert sorted(WHO_DID) == sorted(set(WHO_DID)), "no step was done twice: a drain gives runs back"


async def test_tables_of_a_newer_release_do_not_trouble_processes_that_run(
    settings: Settings, nc: Client, pool: asyncpg.Pool
):
    async with in_process(settings, nc, Old) as platform:
        before = await platform.start_run("clerk", "before", run_id="before")
        await waiting(platform, before)
        # What a migration before the roll-out of code may do: add what has a default, or may be missing.
        tables = await pool.fetch(
            "SELECT relname AS tablename FROM pg_class"
            " WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace"
        )
        for table in (row["tablename"] for row in tables):
            if table != "schema_migrations":
                await pool.execute(f"ALTER TABLE \"{table}\" ADD COLUMN of_tomorrow text DEFAULT 'x'")
        await pool.execute("CREATE TABLE of_tomorrow (id bigint PRIMARY KEY)")
        await pool.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES (9000, '9000_next.sql', 'x')"
        )
        await platform.request("run.signal", {"run_id": before, "name": "go"})
        assert await ended(platform, before) == "old before"
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value)"
            " VALUES ('clerk', 'agent_role', 'x')"
        )

        async def has_it() -> bool:
            config = await platform.request("config.get.clerk", {})
            return config["configurations"].get("agent_role") == "x"

        await eventually(has_it)
        # A process that is started again, or scaled up, while the upgrade is on its way.
        await platform.agent(Old)
        after = await platform.start_run("clerk", "after", run_id="after")
        await waiting(platform, after)
        await platform.request("run.signal", {"run_id": after, "name": "go"})
        assert await ended(platform, after) == "old after"
        # The old release's own `perdure migrate` says that it is not the newest, and `perdure doctor` says the same.
        with pytest.raises(SetupError, match="9000_next"):
            await check(settings)
        found = [each for each in await examine(settings) if each.check == "migrations"]
        assert [each.status for each in found] == ["error"]
        assert "newer release" in found[0].fix


async def test_messages_with_fields_that_are_not_known_yet_are_taken(settings: Settings, nc: Client):
    async with in_process(settings, nc, Old) as platform:
        newer = {"task": "t", "run_id": "newer", "of_tomorrow": {"deep": [1]}}
        started = orjson.loads((await nc.request("run.start.clerk", orjson.dumps(newer), timeout=10)).data)
        assert started["run_id"] == "newer"
        await waiting(platform, "newer")
        revision = (await platform.request("config.get.clerk", {}))["revision"]
        update = {"agent_name": "clerk", "updated_keys": ["agent_role"], "timestamp": 1.0, "revision": revision + 1}
        update |= {"of_tomorrow": True, "snapshot": None}
        await nc.publish("config.update.clerk", orjson.dumps(update))
        await nc.publish("config.applied.clerk", orjson.dumps({"agent_name": "clerk", "of_tomorrow": 1}))
        await nc.jetstream().publish(
            "work.clerk", orjson.dumps({"run_id": "newer", "of_tomorrow": 1}), headers={"Of-Tomorrow": "1"}
        )
        signal = {"run_id": "newer", "name": "go", "of_tomorrow": 1}
        answer = orjson.loads((await nc.request("run.signal", orjson.dumps(signal), timeout=10)).data)
        assert "error" not in answer
        assert await ended(platform, "newer") == "old t"
        await asyncio.gather(*(service.health.report() for service in platform.services))
        assert {service.health.status() for service in platform.services} <= {"ok", "warning"}
