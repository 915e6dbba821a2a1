"""What a plain SQL writer may rely on: revisions, history, one NOTIFY a commit, and what is refused."""

from __future__ import annotations

import asyncio

import asyncpg
import orjson
import pytest

from perdure.store.postgres import Pool
from tests.config_support import PUT
from tests.support import eventually


async def revision(pool: Pool) -> int:
    return await pool.fetchval("SELECT revision FROM config_counter")


async def history(pool: Pool) -> list[tuple]:
    rows = await pool.fetch(
        "SELECT revision, agent_name, config_key, old_value, new_value FROM config_history ORDER BY 1, 2, 3"
    )
    return [tuple(row) for row in rows]


async def test_the_table_has_the_columns_of_the_contract(pool: Pool) -> None:
    rows = await pool.fetch(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_name = 'agent_configurations' ORDER BY ordinal_position"
    )
    assert [tuple(row) for row in rows] == [
        ("agent_name", "text", "NO"),
        ("config_key", "text", "NO"),
        ("config_value", "text", "NO"),
        ("last_updated", "timestamp with time zone", "NO"),
        ("is_active", "boolean", "NO"),
    ]


async def test_a_transaction_over_many_rows_is_one_revision_with_old_and_new(pool: Pool) -> None:
    await pool.execute(PUT, "a", "k", "1")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(PUT, "a", "k", "2")
        await connection.execute(PUT, "a", "k", "3")
        await connection.execute(PUT, "*", "k", "9")
        await connection.execute(PUT, "b", "gone", "x")
        await connection.execute("DELETE FROM agent_configurations WHERE agent_name = 'b'")
    assert await history(pool) == [
        (1, "a", "k", None, "1"),
        (2, "*", "k", None, "9"),
        (2, "a", "k", "1", "3"),
        (2, "b", "gone", None, None),
    ]


async def test_an_update_that_changes_nothing_makes_no_revision(pool: Pool) -> None:
    await pool.execute(PUT, "a", "k", "1")
    before = await pool.fetchval("SELECT last_updated FROM agent_configurations")
    await pool.execute("UPDATE agent_configurations SET config_value = '1', last_updated = now() + interval '1 day'")
    assert await revision(pool) == 1
    assert await pool.fetchval("SELECT last_updated FROM agent_configurations") == before


async def test_a_change_moves_last_updated(pool: Pool) -> None:
    await pool.execute(PUT, "a", "k", "1")
    before = await pool.fetchval("SELECT last_updated FROM agent_configurations")
    await pool.execute("UPDATE agent_configurations SET config_value = '2'")
    assert await pool.fetchval("SELECT last_updated FROM agent_configurations") > before


async def test_a_rolled_back_transaction_leaves_no_revision(pool: Pool) -> None:
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(PUT, "a", "k", "1")
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        await transaction.rollback()
    assert await revision(pool) == 0
    await pool.execute(PUT, "a", "k", "1")
    assert await revision(pool) == 1


async def test_a_renamed_row_left_one_agent_and_came_to_the_other(pool: Pool) -> None:
    await pool.execute(PUT, "a", "k", "1")
    await pool.execute("UPDATE agent_configurations SET agent_name = 'b'")
    assert (await history(pool))[1:] == [(2, "a", "k", "1", None), (2, "b", "k", None, "1")]


async def test_a_row_that_moves_from_a_secret_key_may_have_a_plain_value_and_none_that_moves_to_one(pool: Pool) -> None:
    await pool.execute(PUT, "a", "llm_api_key", "secret://env/KEY")
    move = "UPDATE agent_configurations SET config_key = $1, config_value = $2"
    await pool.execute(move, "greeting", "hello")
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute(move, "llm_api_key", "sk-plain")
    assert (await history(pool))[1:] == [
        (2, "a", "greeting", None, "hello"),
        (2, "a", "llm_api_key", "secret://env/KEY", None),
    ]


async def test_the_newest_revision_of_each_layer_is_known_also_when_its_rows_are_gone(pool: Pool) -> None:
    assert await pool.fetch("SELECT * FROM config_heads") == []
    for layer in ("b", "*", "b@host", "a", "b"):
        await pool.execute(PUT, layer, "k", f"of {layer}")
        await pool.execute(PUT, layer, "k2", "x")
    await pool.execute("DELETE FROM agent_configurations WHERE agent_name = 'b@host'")
    heads = dict(await pool.fetch("SELECT agent_name, revision FROM config_heads"))
    assert heads == {"*": 4, "a": 8, "b": 2, "b@host": 9}


async def test_who_changed_it_is_the_sql_user_or_what_the_transaction_says(pool: Pool) -> None:
    await pool.execute(PUT, "a", "k", "1")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT set_config('perdure.changed_by', 'eva', TRUE)")
        await connection.execute(PUT, "a", "k", "2")
    user = await pool.fetchval("SELECT session_user")
    rows = await pool.fetch("SELECT changed_by, sql_user FROM config_history ORDER BY revision")
    assert [tuple(row) for row in rows] == [(user, user), ("eva", user)]


async def test_truncate_is_refused_with_the_way_round(pool: Pool) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError) as refused:
        await pool.execute("TRUNCATE agent_configurations")
    assert "DELETE" in (refused.value.hint or "")


async def test_a_transaction_of_many_agents_or_a_large_value_fits_its_notify(pool: Pool) -> None:
    heard: list[dict] = []
    async with pool.acquire() as listener:
        await listener.add_listener("perdure_config", lambda *arrived: heard.append(orjson.loads(arrived[3])))
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) "
            "SELECT 'agent-' || n, 'k', 'v' FROM generate_series(1, 5000) AS n"
        )
        await pool.execute(PUT, "a", "large", "x" * 1_000_000)
        await eventually(lambda: len(heard) == 2)
        await listener.reset()
    assert heard == [{"revision": 1, "agents": None}, {"revision": 2, "agents": ["a"]}]


async def test_names_take_their_one_form_or_are_refused(pool: Pool) -> None:
    await pool.execute(PUT, "Mail Sorter", "k", "1")
    await pool.execute(PUT, "Mail Sorter", "k", "2")
    await pool.execute(PUT, "Mail Sorter@Host.1", "k", "3")
    rows = await pool.fetch("SELECT agent_name, config_value FROM agent_configurations ORDER BY 1")
    assert [tuple(row) for row in rows] == [("mail-sorter", "2"), ("mail-sorter@Host.1", "3")]
    for bad in ("", "a.b", "-a", "ä", "a" * 64, "a@", "*@host", "**"):
        with pytest.raises(asyncpg.CheckViolationError, match="agent_name"):
            await pool.execute(PUT, bad, "k", "1")
    for bad in ("", " k", "k ", "a\nb", "k" * 256):
        with pytest.raises(asyncpg.CheckViolationError, match="config_key"):
            await pool.execute(PUT, "a", bad, "1")


async def test_a_plain_secret_is_refused_before_it_reaches_history(pool: Pool) -> None:
    for layer in ("*", "assistant", "assistant@host"):
        with pytest.raises(asyncpg.CheckViolationError, match="is a secret key") as refused:  # before its history
            await pool.execute(PUT, layer, "llm_api_key", "sk-plain-text")
        assert "secret://env" in (refused.value.hint or "")
        assert "sk-plain-text" not in f"{refused.value} {refused.value.hint} {refused.value.detail}"
    await pool.execute(PUT, "assistant", "llm_api_key", "secret://env/OPENAI_API_KEY")
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute("UPDATE agent_configurations SET config_value = 'sk-plain-text'")
    assert await history(pool) == [(1, "assistant", "llm_api_key", None, "secret://env/OPENAI_API_KEY")]


async def test_a_key_that_one_agent_calls_secret_is_secret_in_the_global_layer_too(pool: Pool) -> None:
    await pool.execute("INSERT INTO config_secret_keys VALUES ('mailer', 'smtp_password')")
    await pool.execute(PUT, "other", "smtp_password", "its own business")
    for layer in ("*", "mailer"):
        with pytest.raises(asyncpg.CheckViolationError):
            await pool.execute(PUT, layer, "smtp_password", "hunter2")


async def test_writers_of_the_same_agents_in_any_order_do_not_deadlock_in_the_triggers(pool: Pool) -> None:
    async def write(number: int) -> None:
        for turn in range(20):
            await pool.execute(PUT, f"agent-{number}", "k", str(turn))

    await asyncio.gather(*(write(number) for number in range(8)))
    assert await revision(pool) == 160
    seen = await pool.fetch("SELECT DISTINCT revision FROM config_history ORDER BY 1")
    assert [row["revision"] for row in seen] == list(range(1, 161))


async def test_a_user_who_may_only_write_the_table_can_write_it(pool: Pool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("CREATE ROLE config_writer_test")
        try:
            await connection.execute("GRANT SELECT, INSERT, UPDATE ON agent_configurations TO config_writer_test")
            await connection.execute("SET ROLE config_writer_test")
            await connection.execute(PUT, "a", "k", "1")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("DELETE FROM config_history")
        finally:
            await connection.execute("RESET ROLE")
            await connection.execute("DROP OWNED BY config_writer_test")
            await connection.execute("DROP ROLE config_writer_test")
    assert await history(pool) == [(1, "a", "k", None, "1")]
