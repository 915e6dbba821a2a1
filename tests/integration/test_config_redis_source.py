"""With Redis as the source: what was set there last counts, and what Redis loses is written back."""

from __future__ import annotations

import asyncio
import shlex
import shutil

import pytest

from tests.config_redis_support import agreed, mode, reads, source, stands
from tests.config_support import ask, following, manager, messages
from tests.docs import ROOT, blocks
from tests.support import eventually, temporary_folder

__all__ = ["mode"]  # a fixture

SECRET = "sk-live-4Yq9ZkP2"


# -- what Redis loses ------------------------------------------------------------------------------------------------
async def test_a_flushed_redis_does_not_wipe_configuration_and_is_filled_again(mode, nc, redis) -> None:
    quick = mode.model_copy(update={"config_poll_interval": 0.1})
    async with source(quick) as running:
        running.source.mirror.grace = 3600.0  # the lost mark says enough
        await redis.mset({"config:assistant:a": "1", "config:*:b": "2"})
        await eventually(lambda: running.table.revision >= 1)
        await reads(nc, {"a": "1", "b": "2"})
        await running.source.look_at_all()
        revision = running.table.revision
        await redis.flushdb()
        await stands(redis, "config:assistant:a", b"1")
        await stands(redis, "config:*:b", b"2")
        assert running.table.revision == revision  # nothing has changed for anybody


async def test_a_redis_that_was_replaced_by_an_empty_one_is_filled_again(mode, servers, nc, redis) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:a", "1")
        await agreed(running, 1)
        await servers.redis.kill()
        shutil.rmtree(servers.redis.data_dir)
        await servers.redis.start()
        await stands(redis, "config:assistant:a", b"1")
        await redis.set("config:assistant:a", "2")  # events are switched on again, too
        await reads(nc, {"a": "2"})


async def test_a_redis_that_came_back_with_older_data_is_brought_forward_but_news_count(
    mode, servers, nc, redis
) -> None:
    async with source(mode) as running:
        await redis.mset({"config:assistant:a": "1", "config:assistant:b": "1", "config:assistant:c": "1"})
        await eventually(lambda: running.table.layer("assistant") == {"a": "1", "b": "1", "c": "1"})
        await running.source.look_at_all()
        with temporary_folder("older") as older:
            await servers.redis.stop()
            shutil.copytree(servers.redis.data_dir, older / "data")
            await servers.redis.start()
            await eventually(running.source.connected.is_set)
            await redis.mset({"config:assistant:a": "2", "config:assistant:b": "2"})
            await eventually(lambda: running.table.layer("assistant") == {"a": "2", "b": "2", "c": "1"})
            await running.source.look_at_all()
            await redis.delete("config:assistant:c")
            await eventually(lambda: running.table.layer("assistant") == {"a": "2", "b": "2"})
            await running.source.look_at_all()
            await servers.redis.stop()
            # Somebody writes to the restored server before the ConfigManager sees it.
            shutil.rmtree(servers.redis.data_dir)
            shutil.copytree(older / "data", servers.redis.data_dir)
            running.source._leads = lambda: False
            await servers.redis.start()
            await redis.set("config:assistant:b", "3")
            running.source._leads = lambda: True
            running.source.touched([])
        await reads(nc, {"a": "2", "b": "3"})
        await stands(redis, "config:assistant:c", None)
        await stands(redis, "config:assistant:a", b"2")


async def test_a_key_that_expires_is_written_back(mode, nc, redis) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:a", "1")
        await agreed(running, 1)
        await redis.pexpire("config:assistant:a", 1)
        await stands(redis, "config:assistant:a", None)
        await stands(redis, "config:assistant:a", b"1")
        assert await redis.ttl("config:assistant:a") == -1
        assert running.table.revision == 1


async def test_a_deletion_while_no_manager_ran_cannot_be_told_from_a_loss(mode, nc, redis) -> None:
    async with source(mode) as running:
        await redis.mset({"config:assistant:a": "1", "config:assistant:b": "1"})
        await eventually(lambda: running.table.layer("assistant") == {"a": "1", "b": "1"})
        await running.source.look_at_all()
    await redis.delete("config:assistant:a")
    await redis.set("config:assistant:b", "2")
    async with source(mode.model_copy(update={"config_poll_interval": 0.1})):
        await reads(nc, {"a": "1", "b": "2"})
        await stands(redis, "config:assistant:a", b"1")


async def test_a_deletion_is_one_even_when_a_look_comes_before_its_word(mode, nc, redis, monkeypatch) -> None:
    async with source(mode) as running:
        running.source.mirror.grace = 3600.0
        await redis.set("config:assistant:a", "1")
        await agreed(running, 1)
        heard = asyncio.Event()
        told = running.source._told

        async def late(message) -> None:
            await heard.wait()
            await told(message)

        monkeypatch.setattr(running.source, "_told", late)
        await redis.delete("config:assistant:a")
        await running.source.look_at_all()
        assert await redis.get("config:assistant:a") is None
        heard.set()
        await reads(nc, {})


# -- what Redis does not tell ----------------------------------------------------------------------------------------
async def test_what_was_set_while_the_connection_was_cut_is_read_after_it(mode, nc, redis) -> None:
    async with source(mode) as running:
        told, unheard = running.source._told, []

        async def deaf_once(message) -> None:  # the event itself is lost
            if message["type"] == "pmessage" and not unheard:
                unheard.append(message)
            else:
                await told(message)

        running.source._told = deaf_once
        await redis.set("config:assistant:a", "1")
        await eventually(lambda: unheard)
        assert (await ask(nc, "config.get.assistant"))["configurations"] == {}
        await redis.client_kill_filter(_type="pubsub")
        await reads(nc, {"a": "1"})


async def test_what_nothing_told_is_found_by_polling(mode, nc, redis) -> None:
    async with source(mode.model_copy(update={"config_poll_interval": 0.1})) as running:

        async def deaf(_message) -> None:
            return

        running.source._told = deaf
        await redis.set("config:assistant:a", "1")
        await reads(nc, {"a": "1"})


async def test_events_are_switched_on_beside_those_that_others_asked_for(mode, redis) -> None:
    await redis.config_set("notify-keyspace-events", "El")
    async with source(mode):
        flags = (await redis.config_get("notify-keyspace-events"))["notify-keyspace-events"]
        assert set("ElK$gxe") <= set(flags)


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        (("&*", "+@all", "-config"), "events of Redis are not heard, so it is polled"),
        (("resetchannels", "+@all"), "events of Redis are not heard, so it is polled"),
        (("&*", "+@all", "-scan"), "configuration does not follow Redis: this user has no permissions"),
    ],
)
async def test_what_redis_does_not_allow_is_said_and_what_it_allows_goes_on(mode, nc, redis, rights, says) -> None:
    await redis.execute_command("ACL", "SETUSER", "config", "on", ">pw", "~*", *rights)
    url = mode.redis_url.replace("redis://", "redis://config:pw@")
    async with manager(mode.model_copy(update={"redis_url": url, "config_poll_interval": 0.1})) as running:

        async def said() -> bool:
            finding = (await running.health.report())["checks"]["config_redis"]
            return finding["status"] == "warning" and says in finding["text"]

        await eventually(said)
        await redis.set("config:assistant:a", "1")
        if "-scan" not in rights:
            await reads(nc, {"a": "1"})
        reply = await ask(nc, "config.set.assistant", {"configurations": {"a": "2"}})
        assert (reply["status"], await redis.get("config:assistant:a")) == ("success", b"2")


async def test_events_that_somebody_else_switched_on_are_heard_and_nothing_is_complained_of(mode, nc, redis) -> None:
    await redis.config_set("notify-keyspace-events", "K$gxe")
    await redis.execute_command("ACL", "SETUSER", "config", "on", ">pw", "~*", "&*", "+@all", "-config")
    url = mode.redis_url.replace("redis://", "redis://config:pw@")
    async with source(mode.model_copy(update={"redis_url": url})) as running:
        await redis.set("config:assistant:a", "1")
        await reads(nc, {"a": "1"})
        await running.source.look_at_all()
        assert (await running.health.report())["checks"]["config_redis"]["status"] == "ok"
        await redis.delete("config:assistant:a")
        await reads(nc, {})


async def test_the_rights_that_the_page_names_are_enough(mode, nc, redis) -> None:
    page = ROOT / "docs" / "how-to" / "configure-by-redis.md"
    script = next(block.text for block in blocks(page) if block.name == "rights")
    words = shlex.split(script.replace("\\\n", " "))
    await redis.execute_command(*words[words.index("ACL") :])
    allowed = mode.redis_url.replace("redis://", "redis://perdure:a%20password@")
    async with source(mode.model_copy(update={"redis_url": allowed})) as running, following(nc, redis, mode):
        await redis.set("config:assistant", '{"a": 1, "b": 2}')
        await reads(nc, {"a": "1", "b": "2"})
        await redis.delete("config:assistant:a")
        await reads(nc, {"b": "2"})
        reply = await ask(nc, "config.set.assistant", {"configurations": {"b": "3"}})
        assert (reply["status"], await redis.get("config:assistant:b")) == ("success", b"3")
        await running.source.look_at_all()
        await running.copy.save()
        assert (await running.health.report())["checks"]["config_redis"]["status"] == "ok"
        assert await redis.exists("perdure:config:table")


async def test_a_deletion_that_was_heard_outlives_whoever_heard_it(mode, nc, redis) -> None:
    async with source(mode) as first:
        await redis.set("config:assistant:a", "1")
        await agreed(first, 1)
        first.source.look = first.source.look_at_all = lambda *_names: asyncio.sleep(3600)
        await redis.delete("config:assistant:a")
        await eventually(lambda: redis.hgetall("perdure:config:deleted:config:"))
    async with source(mode):
        await reads(nc, {})
    assert await redis.get("config:assistant:a") is None


# -- what is not taken -----------------------------------------------------------------------------------------------
async def test_a_plain_secret_stands_nowhere_after_it_was_set(mode, nc, redis, pool, capfd) -> None:
    heard = await messages(nc, "config.>")
    async with source(mode) as running, following(nc, redis, mode):
        await redis.set("config:assistant:llm_api_key", "secret://env/A_KEY")
        await agreed(running, 1)
        await redis.set("config:assistant:llm_api_key", SECRET)
        await redis.set("config:*:llm_api_key", SECRET)
        await redis.set("config:assistant", f'{{"llm_api_key": "{SECRET}", "agent_role": "a cook"}}')
        await reads(nc, {"llm_api_key": "secret://env/A_KEY", "agent_role": "a cook"})
        await stands(redis, "config:assistant:llm_api_key", b"secret://env/A_KEY")
        await stands(redis, "config:*:llm_api_key", None)
        finding = (await running.health.report())["checks"]["config_redis"]["text"]
        assert "*:llm_api_key" in finding
        assert "secret://env/NAME" in finding
        await running.copy.save()
        for key in await redis.keys("*"):
            kind = await redis.type(key)
            value = await (redis.hgetall(key) if kind == b"hash" else redis.get(key))
            assert SECRET not in repr(value), key
        for (table,) in await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            assert SECRET not in repr(await pool.fetch(f'SELECT * FROM "{table}"')), table
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err + repr(heard) + finding


async def test_a_plain_value_of_a_key_that_becomes_secret_leaves_redis_too(mode, nc, redis) -> None:
    async with source(mode) as running:
        await redis.mset({"config:mailer:smtp_password": SECRET, "config:mailer:port": "25"})
        await reads(nc, {"smtp_password": SECRET, "port": "25"}, agent="mailer")
        await running.source.look_at_all()
        schema = {"properties": {"smtp_password": {"type": "string", "secret": True}}}
        await ask(nc, "config.schema.mailer", {"schema": schema})
        await reads(nc, {"port": "25"}, agent="mailer")
        await stands(redis, "config:mailer:smtp_password", None)


async def test_what_cannot_stand_in_the_table_is_put_back_and_the_rest_applies(mode, nc, redis) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:a", "good")
        await agreed(running, 1)
        await redis.set("config:assistant:a", b"\xff\xfe")
        await stands(redis, "config:assistant:a", b"good")
        await redis.mset({"config:assistant:a": "nul \x00", "config:assistant:b": "applies"})
        await reads(nc, {"a": "good", "b": "applies"})
        await stands(redis, "config:assistant:a", b"good")
        text = (await running.health.report())["checks"]["config_redis"]["text"]
        assert "assistant:a: the value must be UTF-8 text without NUL" in text
        await redis.set("config:assistant:a", "better")
        await reads(nc, {"a": "better", "b": "applies"})
        assert (await running.health.report())["checks"]["config_redis"]["status"] == "ok"


async def test_bad_names_bad_batches_and_other_types_are_said_and_left_alone(mode, nc, redis) -> None:
    async with source(mode) as running:
        await redis.set("config:assistant:a", "1")
        await agreed(running, 1)
        await redis.set("config:Assistant:a", "2")
        await redis.set("config:mailer", "no JSON")
        await redis.hset("config:sorter", mapping={"somebody": "else's"})
        await redis.delete("config:assistant:a")
        await reads(nc, {})
        await redis.set("config:assistant:a", "1")
        await reads(nc, {"a": "1"})
        await running.source.look_at_all()
        await redis.eval("redis.call('DEL', KEYS[1]); redis.call('HSET', KEYS[1], 'f', 'v')", 1, "config:assistant:b")
        await ask(nc, "config.set.assistant", {"configurations": {"b": "1"}})
        text = (await running.health.report())["checks"]["config_redis"]["text"]
        assert "config:Assistant:a: 'Assistant' is no agent: write config:<agent>:<key>" in text
        assert "mailer: a batch is a JSON object" in text
        assert "sorter: a batch is a string" in text
        assert "assistant:b: the key is no string in Redis" in text
        assert await redis.get("config:mailer") == b"no JSON"
        await redis.delete("config:Assistant:a")
        await running.source.look_at_all()
        assert "config:Assistant" not in (await running.health.report())["checks"]["config_redis"]["text"]
        assert await redis.hgetall("config:assistant:b") == {b"f": b"v"}
