"""Whoever acts, through whichever door, stands with the act: over NATS, over HTTP, by the command, with plain SQL."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client as Nats

from perdure.agent.base import BaseAgent
from perdure.edge import keys
from perdure.edge.keys import pepper
from perdure.engine import Context, workflow
from perdure.settings import Settings
from perdure.store.audit import verify
from perdure.store.audit_seals import Sealer
from perdure.store.postgres import Pool
from tests.command import perdure
from tests.edge_support import Web, done, web
from tests.platform import InProcess, in_process
from tests.support import eventually

ROLE = "perdure"  # who the tests are to Postgres


class Waiter(BaseAgent):
    name = "waiter"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return await ctx.wait_signal("go")


@pytest.fixture
async def door(settings: Settings, nc: Nats):
    async with in_process(settings, nc, Waiter) as platform, web(settings, platform) as made:
        yield platform, made


async def prepared(platform: InProcess, pool: Pool, name: str) -> None:
    """A run to be cancelled, and an approval to be decided, both called `name`."""
    await platform.start_run("waiter", None, run_id=name)
    await eventually(lambda: pool.fetchval("SELECT status = 'waiting' FROM runs WHERE run_id = $1", name))
    await pool.execute(
        "INSERT INTO approvals (run_id, call_id, agent_name, session_id, tool, arguments, arguments_hash) "
        "VALUES ($1, 'c', 'waiter', 's', 'pay', '{}', 'h')",
        name,
    )


async def names(pool: Pool, subject: str) -> dict[str, tuple[str, str]]:
    """Each act on `subject`: who, and as which role."""
    rows = await pool.fetch("SELECT act, actor, sql_user FROM audit_log WHERE subject = $1", subject)
    return {row["act"]: (row["actor"], row["sql_user"]) for row in rows}


async def changed_by(pool: Pool, key: str) -> tuple[str, str]:
    row = await pool.fetchrow("SELECT changed_by, sql_user FROM config_history WHERE config_key = $1", key)
    return row["changed_by"], row["sql_user"]


DECISION = {"call_id": "c", "arguments_hash": "h", "decision": "approve"}


async def test_over_nats_the_header_says_who_and_without_it_the_role_that_postgres_saw(door, nc: Nats, pool: Pool):
    platform, _ = door
    for name, headers in (("anna", {"Perdure-By": "Anna"}), ("nobody", None)):
        await prepared(platform, pool, name)

        async def ask(subject: str, body: dict[str, Any], headers: Any = headers) -> None:
            reply = orjson.loads((await nc.request(subject, orjson.dumps(body), timeout=10, headers=headers)).data)
            assert reply["status"] != "error", reply

        await ask("run.approve", {"run_id": name, **DECISION})
        await ask("run.cancel", {"run_id": name})
        await ask("config.set.waiter", {"configurations": {f"set_{name}": "1"}})
    assert await names(pool, "anna") == {"approval.approved": ("Anna", ROLE), "run.cancel": ("Anna", ROLE)}
    assert await names(pool, "nobody") == {"approval.approved": (ROLE, ROLE), "run.cancel": (ROLE, ROLE)}
    assert await changed_by(pool, "set_anna") == ("Anna", ROLE)
    assert await changed_by(pool, "set_nobody") == ("config.set", ROLE)


async def test_over_http_it_is_the_name_of_the_key(door, pool: Pool):
    platform, made = door
    await prepared(platform, pool, "r")
    under = await asyncio.to_thread(pepper, made.gateway.settings)
    key = (await keys.create(made.gateway.pool, under, name="shop", role="admin")).key
    said: dict[str, Any] = {"headers": {"Authorization": f"Bearer {key}", "Perdure-By": "somebody else"}}
    await Web(made.gateway, made.http).post("/runs/r/approvals/c", DECISION, **said)
    await made.post("/runs/r/cancel", {"reason": "enough"}, **said)
    done(await made.http.patch("/config/waiter", json={"configurations": {"by_http": "1"}}, **said))
    assert await names(pool, "r") == {"approval.approved": ("shop", ROLE), "run.cancel": ("shop", ROLE)}
    assert await changed_by(pool, "by_http") == ("shop", ROLE)


async def test_by_the_command_it_is_its_user_and_the_command_verifies(
    door, settings: Settings, pool: Pool, tmp_path: Path
):
    platform, _ = door
    await prepared(platform, pool, "r")
    said = {"NATS_URL": settings.nats_url, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}

    async def command(*words: str) -> str:
        code, out, errors = await perdure(tmp_path, *words, **said)
        assert code == 0, (words, out, errors)
        return out

    await asyncio.gather(
        command("runs", "cancel", "r"),
        command("config", "set", "waiter", "by_command=1"),
        command("key", "create", "shop", "--role", "viewer"),
    )
    me = getpass.getuser()
    assert await names(pool, "r") == {"run.cancel": (me, ROLE)}
    assert await changed_by(pool, "by_command") == (me, ROLE)
    [made] = await pool.fetch("SELECT key_id FROM gateway_keys")
    assert await names(pool, made["key_id"]) == {"key.create": (me, ROLE)}
    await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM audit_heads"))
    assert "as they were sealed" in await command("audit", "verify")


async def test_with_plain_sql_it_is_the_role_and_the_act_is_sealed_like_the_others(door, pool: Pool):
    platform, _ = door
    await prepared(platform, pool, "r")
    await pool.execute("UPDATE approvals SET status = 'denied', decided_by = 'Carla' WHERE run_id = 'r'")
    await pool.execute("UPDATE runs SET pause_asked = TRUE WHERE run_id = 'r'")
    await pool.execute("INSERT INTO agent_configurations VALUES ('waiter', 'by_sql', '1')")
    assert await names(pool, "r") == {"approval.denied": ("Carla", ROLE), "run.pause": (ROLE, ROLE)}
    assert await changed_by(pool, "by_sql") == (ROLE, ROLE)
    sealer = Sealer(pool, None)
    await sealer.seal("acts")
    await sealer.seal("configuration")
    async with pool.acquire() as connection:
        assert [(await verify(connection, chain, None)).broken for chain in ("acts", "configuration")] == ["", ""]
