"""The audit log: every act of a person leaves a row with it, and whatever is done to the rows is found."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client as Nats
from typer.testing import CliRunner

from perdure.agent.base import BaseAgent
from perdure.cli.main import build
from perdure.engine import Context, workflow
from perdure.settings import Settings, load_settings
from perdure.store import audit_seals
from perdure.store.actor import actor
from perdure.store.audit import CHAINS, Chain, Verdict, acting_pool, verify
from perdure.store.audit_seals import Sealer
from perdure.store.postgres import Pool
from tests.edge_support import web
from tests.platform import InProcess, in_process
from tests.support import eventually

KEY = "k" * 32
MAKE_KEY = "INSERT INTO gateway_keys (key_id, name, hash, role) VALUES ($1, 'shop', '\\x00', 'admin')"


class Waiter(BaseAgent):
    name = "waiter"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        await ctx.step("one", lambda: 1)
        return await ctx.wait_signal("go")


async def acts(pool: Pool) -> list[tuple[str, str, str]]:
    rows = await pool.fetch("SELECT actor, act, subject FROM audit_log ORDER BY audit_id")
    return [tuple(row) for row in rows]


async def waiting(platform: InProcess, pool: Pool, run_id: str) -> str:
    await platform.start_run("waiter", None, run_id=run_id)
    await eventually(lambda: pool.fetchval("SELECT status = 'waiting' FROM runs WHERE run_id = $1", run_id))
    return run_id


async def test_what_people_do_to_runs_is_written_down_with_who_did_it_and_the_way_of_a_run_is_not(
    settings: Settings, nc: Nats, pool: Pool
):
    async with in_process(settings, nc, Waiter) as platform:
        for run_id in ("r1", "r2", "r3", "r4"):
            await waiting(platform, pool, run_id)
        await platform.request("run.signal", {"run_id": "r4", "name": "go", "payload": 1})
        await eventually(lambda: pool.fetchval("SELECT status = 'completed' FROM runs WHERE run_id = 'r4'"))
        assert await acts(pool) == []
        actor.set("Anna")
        await platform.request("run.pause", {"run_id": "r1"})
        await platform.request("run.resume", {"run_id": "r1"})
        await platform.request("run.cancel", {"run_id": "r1", "reason": "enough"})
        actor.set("Bob\nB\u00f6b")
        await platform.request("run.terminate", {"run_id": "r2"})
        await platform.request("run.fork", {"run_id": "r3", "step": "one", "new_run_id": "r5"})
        await platform.request("run.restart", {"run_id": "r3", "new_run_id": "r6"})
        actor.set("")
        await platform.request("run.cancel", {"run_id": "r3"})
        async with web(settings, platform) as door:
            await door.post("/runs/r5/cancel")
    assert await acts(pool) == [
        ("Anna", "run.pause", "r1"),
        ("Anna", "run.resume", "r1"),
        ("Anna", "run.cancel", "r1"),
        ("Bob B?b", "run.terminate", "r2"),
        ("Bob B?b", "run.fork", "r3"),
        ("Bob B?b", "run.restart", "r3"),
        ("perdure", "run.cancel", "r3"),
        ("local", "run.cancel", "r5"),
    ]


async def test_keys_schedules_and_decisions_are_written_down(settings: Settings, nc: Nats, pool: Pool):
    async with in_process(settings, nc) as platform:
        actor.set("Anna")
        for said in ({"cron": "0 9 * * *"}, {"cron": "0 8 * * *"}):
            await platform.request("schedule.set", {"name": "daily", "agent": "waiter", **said})
        await platform.request("schedule.pause", {"name": "daily"})
        await platform.request("schedule.delete", {"name": "daily"})
    mine = acting_pool(pool)
    await mine.execute(MAKE_KEY, "k1")
    await mine.execute("UPDATE gateway_keys SET last_used_at = now()")
    await mine.execute("UPDATE gateway_keys SET role = 'viewer'")
    await mine.execute("UPDATE gateway_keys SET revoked_at = now()")
    actor.set("")
    await pool.execute("DELETE FROM gateway_keys")
    await pool.execute(
        "INSERT INTO approvals (run_id, call_id, agent_name, session_id, tool, arguments, arguments_hash) "
        "VALUES ('r1', 'c1', 'desk', 's', 'pay', '{}', 'h')"
    )
    await pool.execute("UPDATE approvals SET status = 'approved', decided_by = 'Carla'")
    assert await acts(pool) == [
        ("Anna", "schedule.set", "daily"),
        ("Anna", "schedule.set", "daily"),
        ("Anna", "schedule.pause", "daily"),
        ("Anna", "schedule.delete", "daily"),
        ("Anna", "key.create", "k1"),
        ("Anna", "key.change", "k1"),
        ("Anna", "key.revoke", "k1"),
        ("perdure", "key.delete", "k1"),
        ("Carla", "approval.approved", "r1"),
    ]


async def test_an_act_that_is_rolled_back_leaves_no_row_and_a_name_is_not_left_on_its_connection(pool: Pool):
    actor.set("Anna")
    async with acting_pool(pool).acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(MAKE_KEY, "k")
        await transaction.rollback()
    actor.set("")
    assert await acts(pool) == []
    await pool.execute(MAKE_KEY, "k")
    assert await acts(pool) == [("perdure", "key.create", "k")]


# -- the chain --------------------------------------------------------------------------------------------------------


async def did(pool: Pool, count: int) -> None:
    """So many acts, each a transaction of its own."""
    for number in range(count):
        await pool.execute("SELECT audit('Anna', 'run.cancel', $1, 'x')", f"r{number}")


async def changed(pool: Pool, key: str, value: str) -> None:
    await pool.execute(
        "INSERT INTO agent_configurations VALUES ('a', $1, $2) "
        "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = $2",
        key,
        value,
    )


async def sealed(pool: Pool, key: str | None = None) -> None:
    for chain in CHAINS:
        while await Sealer(pool, key, block=3).seal(chain):
            pass


async def looked(pool: Pool, chain: Chain, key: str | None = None, **more: Any) -> Verdict:
    async with pool.acquire() as connection:
        return await verify(connection, chain, key, **more)


@pytest.fixture
async def filled(pool: Pool) -> Pool:
    """Two chains of several blocks."""
    await did(pool, 8)
    for number in range(8):
        await changed(pool, f"k{number}", "v")
    await sealed(pool)
    for chain in CHAINS:
        found = await looked(pool, chain)
        assert (found.broken, found.rows, found.seq) == ("", 8, 3)
    return pool


async def tamper(pool: Pool, *statements: str) -> None:
    """What only the owner can do, who may switch triggers off."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


ACT = "(audit_id, at, actor, sql_user, act, subject, detail) OVERRIDING SYSTEM VALUE"
CHANGE = "config_key, old_value, old_active, new_value, new_active, changed_by, sql_user, changed_at"
CHANGED = "UPDATE config_history SET"
SECOND = "WHERE chain = 'acts' AND seq = 2"
TAMPERED: dict[str, tuple[Chain, tuple[str, ...], str]] = {
    "who": ("acts", ("UPDATE audit_log SET actor = 'Bob' WHERE audit_id = 4",), "row 4 was changed"),
    "when": ("acts", ("UPDATE audit_log SET at = at - interval '1 s' WHERE audit_id = 4",), "row 4 was changed"),
    "what": ("acts", ("UPDATE audit_log SET act = 'run.pause' WHERE audit_id = 4",), "row 4 was changed"),
    "to what": ("acts", ("UPDATE audit_log SET subject = 's' WHERE audit_id = 4",), "row 4 was changed"),
    "by which role": ("acts", ("UPDATE audit_log SET sql_user = 's' WHERE audit_id = 4",), "row 4 was changed"),
    "details": ("acts", ("UPDATE audit_log SET detail = 'y' WHERE audit_id = 4",), "row 4 was changed"),
    "removed": ("acts", ("DELETE FROM audit_log WHERE audit_id = 4",), "row 4 is missing"),
    "the last removed": ("acts", ("DELETE FROM audit_log WHERE audit_id = 8",), "row 8 is missing"),
    "re-ordered": (
        "acts",
        (
            "CREATE TEMPORARY TABLE two ON COMMIT DROP AS SELECT * FROM audit_log WHERE audit_id IN (2, 5)",
            "DELETE FROM audit_log WHERE audit_id IN (2, 5)",
            f"INSERT INTO audit_log {ACT} SELECT 7 - audit_id, at, actor, sql_user, act, subject, detail FROM two",
        ),
        "row 2 was changed",
    ),
    "inserted": (
        "acts",
        (f"INSERT INTO audit_log {ACT} VALUES (0, now(), 'Bob', 'x', 'run.cancel', 'r', '')",),
        "row 0 was inserted",
    ),
    "inserted into a sealed number": (
        "acts",
        (
            "UPDATE audit_seals SET gaps = '{-1}', gaps_since = ARRAY[now()] WHERE chain = 'acts' AND seq = 3",
            f"INSERT INTO audit_log {ACT} VALUES (-1, now(), 'Bob', 'x', 'run.cancel', 'r', '')",
        ),
        "block 3 was changed",
    ),
    "a seal": (
        "acts",
        (f"UPDATE audit_seals SET hashes = set_byte(hashes, 0, 255 - get_byte(hashes, 0)) {SECOND}",),
        "block 2 was changed",
    ),
    "the length of a seal": (
        "acts",
        (f"UPDATE audit_seals SET hashes = substr(hashes, 65) {SECOND}",),
        "not one hash for each",
    ),
    "the time of a seal": (
        "acts",
        (f"UPDATE audit_seals SET last_at = last_at - interval '9 years' {SECOND}",),
        "block 2 was changed",
    ),
    "ids of a seal": ("acts", (f"UPDATE audit_seals SET ids = '{{4,5,7}}' {SECOND}",), "block 2 was changed"),
    "what a seal contains": ("acts", (f"UPDATE audit_seals SET content = '\\x00' {SECOND}",), "block 2 was changed"),
    "an emptied seal": (
        "acts",
        (f"UPDATE audit_seals SET ids = '{{}}', hashes = '' {SECOND}",),
        "block 2 was emptied before its time",
    ),
    "an emptied seal of configuration": (
        "configuration",
        ("UPDATE audit_seals SET ids = '{}', hashes = '' WHERE chain = 'configuration' AND seq = 2",),
        "block 2 was emptied before its time",
    ),
    "a seal removed": ("acts", (f"DELETE FROM audit_seals {SECOND}",), "block 2 .* is missing"),
    "the end cut off": ("acts", ("DELETE FROM audit_seals WHERE chain = 'acts' AND seq = 3",), "was cut short"),
    "all of it gone": ("acts", ("DELETE FROM audit_seals WHERE chain = 'acts'",), "was cut short"),
    "a value": (
        "configuration",
        ("UPDATE config_history SET new_value = 'w' WHERE revision = 4",),
        "row 4 was changed",
    ),
    "an old value": (
        "configuration",
        (f"{CHANGED} old_value = 'w' WHERE revision = 4",),
        "row 4 was changed",
    ),
    "who changed": (
        "configuration",
        (f"{CHANGED} changed_by = 'Bob' WHERE revision = 4",),
        "row 4 was changed",
    ),
    "a change removed": ("configuration", ("DELETE FROM config_history WHERE revision = 4",), "row 4 is missing"),
    "the newest change removed": (
        "configuration",
        ("DELETE FROM config_history WHERE revision = 8",),
        "row 8 is missing",
    ),
    "a change removed before it was sealed": (
        "configuration",
        ("UPDATE config_counter SET revision = 9",),
        "row 9 is missing",
    ),
    "a change inserted": (
        "configuration",
        (f"INSERT INTO config_history SELECT revision, 'b', {CHANGE} FROM config_history WHERE revision = 4",),
        "row 4 was inserted",
    ),
    "a revision inserted": (
        "configuration",
        (f"INSERT INTO config_history SELECT 0, 'b', {CHANGE} FROM config_history WHERE revision = 4",),
        "row 0 was inserted",
    ),
}


async def test_what_is_done_to_the_rows_is_found_and_the_row_is_named(filled: Pool):
    for how, (chain, statements, said) in TAMPERED.items():
        async with filled.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("SET LOCAL session_replication_role = replica")
            for statement in statements:
                await connection.execute(statement)
            found = await verify(connection, chain, None)
            assert re.search(said, found.broken), (how, found)
            other: Chain = "configuration" if chain == "acts" else "acts"
            assert (await verify(connection, other, None)).broken == "", how
            await transaction.rollback()


async def test_a_chain_that_is_made_anew_without_the_key_is_found(pool: Pool):
    await did(pool, 3)
    await sealed(pool, KEY)
    assert (await looked(pool, "acts", KEY)).broken == ""
    assert "set PERDURE_AUDIT_KEY" in (await looked(pool, "acts")).broken
    assert "set PERDURE_AUDIT_KEY" in (await looked(pool, "acts", "another " + KEY)).broken
    await tamper(
        pool,
        "UPDATE audit_log SET actor = 'Bob'",
        "DELETE FROM audit_seals WHERE chain = 'acts'",
        "DELETE FROM audit_heads WHERE chain = 'acts'",
    )
    await sealed(pool)  # without the key, as an intruder would
    assert (await looked(pool, "acts")).broken == ""
    assert "sealed without a key" in (await looked(pool, "acts", KEY)).broken


async def test_a_chain_that_is_made_anew_or_cut_is_found_by_a_line_that_was_kept(filled: Pool):
    seen = await looked(filled, "acts")
    kept = (seen.seq, seen.digest)
    assert (await looked(filled, "acts", remembered=kept)).broken == ""
    await tamper(
        filled,
        "DELETE FROM audit_log WHERE audit_id = 8",
        "DELETE FROM audit_seals WHERE chain = 'acts'",
        "DELETE FROM audit_heads WHERE chain = 'acts'",
    )
    await sealed(filled)
    assert (await looked(filled, "acts")).broken == ""
    assert "was made anew" in (await looked(filled, "acts", remembered=kept)).broken
    await tamper(filled, "DELETE FROM audit_seals WHERE chain = 'acts' AND seq = 3",
                 "UPDATE audit_heads SET seq = 2, digest = (SELECT digest FROM audit_seals WHERE chain = 'acts' "
                 "AND seq = 2) WHERE chain = 'acts'")  # fmt: skip
    assert "was cut short" in (await looked(filled, "acts", remembered=kept)).broken


async def test_an_act_that_commits_after_a_later_one_is_sealed_and_no_false_alarm(pool: Pool):
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("SELECT audit('Anna', 'late', 'r', '')")
        await did(pool, 2)
        await sealed(pool)
        await transaction.commit()
    assert (await looked(pool, "acts")).broken == ""
    await did(pool, 1)
    await sealed(pool)
    found = await looked(pool, "acts")
    assert (found.broken, found.rows, found.waiting) == ("", 4, 0)


async def test_a_gap_is_not_held_open_for_ever(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    await did(pool, 1)
    await pool.execute("SELECT nextval(pg_get_serial_sequence('audit_log', 'audit_id'))")  # rolled back, so to say
    await did(pool, 1)
    await sealed(pool)
    monkeypatch.setattr(audit_seals, "PATIENCE", timedelta(0))
    await did(pool, 1)
    await sealed(pool)
    await tamper(pool, f"INSERT INTO audit_log {ACT} VALUES (2, now(), 'Bob', 'x', 'run.cancel', 'r', '')")
    assert "row 2 was inserted" in (await looked(pool, "acts")).broken


async def test_what_is_older_than_it_is_kept_goes_by_whole_blocks(pool: Pool):
    await did(pool, 4)
    await tamper(pool, "UPDATE audit_log SET at = at - interval '40 days' WHERE audit_id < 4")
    await did(pool, 3)
    sealer = Sealer(pool, None, block=3)
    while await sealer.seal("acts"):
        pass
    assert await sealer.prune(30) == 3
    assert await sealer.prune(30) == 0
    found = await looked(pool, "acts", days=30)
    assert (found.broken, found.rows, found.pruned) == ("", 7, 3)
    assert "row 1 is missing" in (await looked(pool, "acts", days=50)).broken
    assert (await sealer.empty("acts"), await sealer.empty("acts")) == (1, 0)
    found = await looked(pool, "acts", days=30)
    assert (found.broken, found.rows) == ("", 4)
    assert "block 1 was emptied before its time" in (await looked(pool, "acts", days=50)).broken
    with pytest.raises(asyncpg.InvalidParameterValueError, match="a day at least"):
        await sealer.prune(0.5)


async def test_a_value_that_was_masked_later_and_history_that_was_pruned_are_no_alarm(filled: Pool):
    await tamper(filled, "UPDATE config_history SET new_value = '********' WHERE revision = 7")
    prune = ("DELETE FROM config_history WHERE revision IN (1, 3)", "UPDATE config_broadcast SET pruned_to = 3")
    await tamper(filled, *prune)
    assert await Sealer(filled, None).empty("configuration") == 0  # 2 is the newest of its key, and stays
    found = await looked(filled, "configuration")
    assert (found.broken, found.pruned) == ("", 2)
    await tamper(filled, "DELETE FROM config_history WHERE revision = 2")
    found = await looked(filled, "configuration")
    assert (found.broken, found.masked, found.pruned) == ("", 1, 3)
    sealer = Sealer(filled, None)
    assert (await sealer.empty("configuration"), await sealer.empty("configuration")) == (1, 0)
    found = await looked(filled, "configuration")
    assert (found.broken, found.masked, found.rows) == ("", 1, 5)
    await changed(filled, "k9", "v")
    await tamper(filled, "DELETE FROM audit_seals WHERE chain = 'configuration'",
                 "DELETE FROM audit_heads WHERE chain = 'configuration'")  # fmt: skip
    await sealed(filled)  # begins after what was pruned
    assert (await looked(filled, "configuration")).rows == 6


async def test_the_log_is_only_added_to(filled: Pool):
    for statement in (
        *("UPDATE audit_log SET actor = 'Bob'", "DELETE FROM audit_log", "TRUNCATE audit_log"),
        *("UPDATE audit_seals SET seq = 9", "DELETE FROM audit_seals", "TRUNCATE audit_seals"),
    ):
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="only added to"):
            await filled.execute(statement)


async def test_two_sealers_make_one_chain(pool: Pool):
    await did(pool, 30)
    sealers = [Sealer(pool, None, block=2) for _ in range(4)]

    async def seal(one: Sealer) -> None:
        while await looked_unsealed(pool):
            await one.seal("acts")

    await asyncio.gather(*map(seal, sealers))
    found = await looked(pool, "acts")
    assert (found.broken, found.rows, found.seq) == ("", 30, 15)


async def looked_unsealed(pool: Pool) -> int:
    query = "SELECT count(*) FROM audit_log WHERE audit_id > coalesce((SELECT max(high) FROM audit_seals), 0)"
    return int(await pool.fetchval(query))


async def test_the_services_seal_and_the_command_says_what_is_broken(
    settings: Settings, nc: Nats, pool: Pool, monkeypatch: pytest.MonkeyPatch
):
    async with in_process(settings, nc):
        await did(pool, 2)
        await changed(pool, "k", "v")
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM audit_heads"))
    for name, url in (("DATABASE_URL", settings.database_url), ("NATS_URL", settings.nats_url), ("COLUMNS", "200")):
        monkeypatch.setenv(name, url)
    code, text = await perdure("verify")
    assert code == 0
    assert "acts: 2 rows as they were sealed" in text
    assert re.search(r"configuration:1:[0-9a-f]{64}", text)
    code, text = await perdure("list", "--act", "run.%", "-o", "json")
    assert (code, text.count('"run.cancel"')) == (0, 2)
    await tamper(pool, "UPDATE audit_log SET actor = 'Bob' WHERE audit_id = 2")
    code, text = await perdure("verify")
    assert (code, "acts: row 2 was changed: run.cancel r1 by Bob" in " ".join(text.split())) == (1, True)
    assert (await perdure("verify", "--head", "acts:x"))[0] == 2


async def perdure(*arguments: str) -> tuple[int, str]:
    """(exit code, what it said) of `perdure audit …`, in a thread: it has a loop of its own."""
    load_settings.cache_clear()
    try:
        done = await asyncio.to_thread(CliRunner().invoke, build("audit"), ["audit", *arguments])
    finally:
        load_settings.cache_clear()
    return done.exit_code, done.output
