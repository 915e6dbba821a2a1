"""Two platforms of different namespaces share a nats-server, a Postgres and a Redis, and know nothing of each other."""

from __future__ import annotations

import asyncpg
import pytest
from pydantic import ValidationError

from perdure import BaseAgent, Client, on_config, subjects, workflow
from perdure.bus.connection import connect
from perdure.bus.streams import standing
from perdure.engine import runs
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.migrate import check, migrate
from perdure.store.postgres import create_pool, database_of
from tests.config_support import PUT, ask, messages
from tests.platform import in_process
from tests.support import eventually


class Greeter(BaseAgent):
    name = "greeter"

    @workflow
    async def run(self, ctx, task):
        return [ctx.config.get_setting("greeting", "hello"), await ctx.step("said", lambda: task)]

    @on_config("greeting")
    async def changed(self, key, old, new):
        pass


@pytest.fixture
async def staging(settings):
    """Settings of the namespace `staging` on the same servers, with a database."""
    inside = settings.model_copy(update={"namespace": "staging"})
    assert len(await check(settings)) == 0
    assert len(await migrate(inside)) > 0
    assert await migrate(inside) == []
    yield inside
    admin = await asyncpg.connect(settings.database_url)
    await admin.execute(f"DROP DATABASE {database_of(inside).rpartition('/')[2]} WITH (FORCE)")
    await admin.close()


async def test_the_same_agent_has_its_own_settings_runs_and_history_in_each(settings, staging, nc, redis, pool) -> None:
    inside = await connect(staging, "test")
    theirs = await create_pool(staging, "test")
    heard = {"none": await messages(nc, "config.update"), "staging": await messages(inside, "config.update")}
    try:
        async with in_process(settings, nc, Greeter) as plain, in_process(staging, inside, Greeter) as other:
            await pool.execute(PUT, "greeter", "greeting", "good day")
            await theirs.execute(PUT, "greeter", "greeting", "ahoy")
            await ask(inside, "config.set.greeter", {"configurations": {"only": "here"}})

            async def live() -> bool:
                outputs = [(await platform.ask("greeter", "x"))["output"] for platform in (plain, other)]
                return outputs == [["good day", "x"], ["ahoy", "x"]]

            await eventually(live)
            assert (await ask(nc, "config.get.greeter"))["configurations"] == {"greeting": "good day"}
            found = await ask(inside, "config.get.greeter")
            assert found["configurations"] == {"greeting": "ahoy", "only": "here"}
            assert "only" not in str(heard["none"])
            assert "good day" not in str(heard["staging"])
            assert await pool.fetchval("SELECT count(*) FROM config_history") == 1
            # Both broadcast: the lock of one namespace's broadcaster is no lock of the other's.
            assert all(platform.services[0].sync.leading for platform in (plain, other))
            # A raw client reaches a namespace by its subjects.
            assert (await ask(nc, "ns.staging.config.get.greeter"))["configurations"]["greeting"] == "ahoy"
            async with Client(staging) as client:
                handle = await client.start("greeter", "y")
                kinds = [event["type"] async for event in handle.events()]
            assert kinds[-1] == "run.completed"
            run = await ask(nc, "run.get", {"run_id": handle.run_id})
            assert run["error"]["code"] == "not_found"
            names = {stream.config.name for stream in await nc.jetstream().streams_info()}
            assert {"WORK", "TASKS", "RUN_EVENTS", "staging-WORK", "staging-TASKS", "staging-RUN_EVENTS"} == names
            runs.wake(inside, "r", "nobody")

            async def stored() -> bool:
                return await standing(inside.jetstream(), subjects.STREAM_WORK) == {"work.nobody": 1}

            await eventually(stored)
            assert await standing(nc.jetstream(), subjects.STREAM_WORK) == {}
            keys = await eventually(lambda: redis.keys("ns:staging:*"))
            assert b"ns:staging:perdure:config:lkg:greeter" in keys
            services = await ask(nc, "ns.staging.$SRV.PING.config-manager")
            assert services["name"] == "config-manager"
    finally:
        theirs.terminate()
        await inside.close()


@pytest.mark.parametrize("bad", ["Prod", "a.b", "a b", "-x", "*", "x" * 31, "a_b"])
def test_a_name_that_is_no_token_is_refused(bad) -> None:
    with pytest.raises(ValidationError, match="namespace"):
        Settings(namespace=bad)


async def test_a_namespace_without_its_database_says_how_to_make_it(settings) -> None:
    with pytest.raises(SetupError, match=r"perdure migrate.*namespace qa"):
        await create_pool(settings.model_copy(update={"namespace": "qa"}), "test")
    with pytest.raises(SetupError, match="names no database"):
        database_of(Settings(database_url="postgresql://perdure@127.0.0.1:5432", namespace="qa"))
    url = "postgresql://u:p@a:1,b:2/perdure?sslmode=require"
    assert database_of(Settings(database_url=url, namespace="my-qa")) == (
        "postgresql://u:p@a:1,b:2/perdure_my_qa?sslmode=require"
    )
    assert database_of(Settings(database_url=url)) == url
