"""With `PERDURE_PAYLOAD_STORE=nats` large values stand in a bucket of JetStream, and rows in Postgres know of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client as Nats

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.bus.bucket import Bucket, config_of
from perdure.bus.connection import connect
from perdure.engine import Context, workflow
from perdure.store.postgres import Pool, create_pool
from perdure.store.vault import Spot, Unreadable, Vault, hash_of, vault_of
from services.scheduler.cleaner import Cleaner
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually

LARGE = 300_000
TEXT = '"' + "x" * LARGE + '"'
NAME = hash_of(TEXT.encode())
SPOT = Spot("output", "r")
STREAM = "OBJ_payloads"
COUNT = "SELECT count(*) FROM payloads WHERE body IS NULL"


class Carrier(BaseAgent):
    name = "carrier"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> str:
        return task["text"]


@pytest.fixture
def elsewhere(settings):
    return settings.model_copy(update={"payload_store": "nats"})


@pytest.fixture
async def bucket(nc: Nats) -> Bucket:
    made = Bucket(nc)
    await made.ensure()
    return made


@pytest.fixture
async def own(elsewhere, bucket) -> AsyncIterator[Pool]:
    """A pool whose vault puts payloads into the bucket."""
    made = await create_pool(elsewhere, "test", size=4)
    vault_of(made).objects = bucket
    yield made
    await made.close()


async def messages(nc: Nats) -> int:
    return (await nc.jetstream().stream_info(STREAM)).state.messages


async def old(pool: Pool) -> None:
    """Nobody uses any of it, since a day."""
    await pool.execute("DELETE FROM payload_uses")
    await pool.execute("UPDATE payloads SET used_at = now() - interval '1 day'")


async def test_what_nobody_uses_goes_from_both_and_leaves_nothing(own, bucket, nc):
    vault = vault_of(own)
    stored = await vault.put(own, [(TEXT, SPOT), (TEXT, SPOT._replace(run_id="s"))])
    assert stored[0] == stored[1]
    assert await own.fetchval(COUNT) == 1
    before = await messages(nc)
    await vault.put(own, [(TEXT, SPOT)])
    assert await messages(nc) == before, "what is there is not put again"
    assert await vault.open(own, [(stored[0], SPOT)]) == [TEXT]
    assert await Cleaner(own, bucket).clean() == 0, "a run may be about to be there"
    await old(own)
    with pytest.raises(ConnectionError, match="object store"):
        await Cleaner(own).clean()
    assert await own.fetchval(COUNT) == 1, "a row goes with its object only"
    assert await Cleaner(own, bucket).clean() == 1
    assert await own.fetchval("SELECT count(*) FROM payloads") == await messages(nc) == 0


class Slow(Bucket):
    """Deletes when it is told to."""

    def __init__(self, nats: Nats) -> None:
        super().__init__(nats)
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def delete(self, name: str) -> None:
        self.asked.set()
        await self.go.wait()
        await super().delete(name)


async def test_whoever_puts_a_payload_that_is_being_deleted_has_it_afterwards(own, bucket, nc):
    vault, slow = vault_of(own), Slow(nc)
    (stored,) = await vault.put(own, [(TEXT, SPOT)])
    await old(own)
    cleaning = asyncio.create_task(Cleaner(own, slow).clean())
    await slow.asked.wait()
    putting = asyncio.create_task(vault.put(own, [(TEXT, SPOT)]))

    async def waits() -> bool:
        return putting.done() or bool(await own.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

    await eventually(waits)
    slow.go.set()
    assert await cleaning == 1
    assert await putting == [stored]
    assert await vault.open(own, [(stored, SPOT)]) == [TEXT]


async def test_a_row_whose_object_never_came_gets_it_from_the_next_who_puts_the_value(own, bucket):
    vault = vault_of(own)
    (stored,) = await vault.put(own, [(TEXT, SPOT)])
    await bucket.delete(NAME)  # as if whoever put it had been killed after the row
    assert await vault.put(own, [(TEXT, SPOT)]) == [stored]
    assert await vault.open(own, [(stored, SPOT)]) == [TEXT]


async def test_an_object_whose_row_was_not_committed_is_found_and_goes(own, bucket, nc):
    vault = vault_of(own)
    async with own.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await vault.put(connection, [(TEXT, SPOT)])
        await transaction.rollback()
    kept = await vault.put(own, [(TEXT + " ", SPOT)])
    assert await own.fetchval("SELECT count(*) FROM payloads") == 1
    cleaner = Cleaner(own, bucket, page=1)
    assert await cleaner.adopt_strays() == 1
    assert await cleaner.clean() == 1
    assert await bucket.get(NAME) is None
    assert await vault.open(own, [(kept[0], SPOT)]) == [TEXT + " "]


async def test_what_the_bucket_does_not_take_stands_in_postgres(elsewhere, nc, pool):
    async with in_process(elsewhere, nc, Carrier) as platform:
        config = config_of("")
        config.max_bytes = 1000
        await nc.jetstream().update_stream(config)
        assert (await platform.ask("carrier", {"text": "x" * LARGE}))["output"] == "x" * LARGE
        assert await pool.fetchval(COUNT) == 0
        assert await pool.fetchval("SELECT bool_and(elsewhere) FROM payloads"), "it is looked for there when it goes"


@pytest.mark.parametrize("harm", ["no bucket", "no object", "no part", "another value"])
async def test_a_value_that_is_gone_or_altered_stops_its_run_and_can_be_put_back(elsewhere, nc, pool, harm):
    async with in_process(elsewhere, nc) as platform, Client(elsewhere) as client:
        run = await client.start("carrier", {"text": "x" * LARGE}, run_id="r")
        name = await pool.fetchval("SELECT hash FROM payloads WHERE body IS NULL")
        bucket = platform.services[-1].bucket
        kept = await bucket.get(name)
        if harm == "no bucket":
            await nc.jetstream().delete_stream(STREAM)
        elif harm == "no object":
            await bucket.delete(name)
        elif harm == "no part":
            await nc.jetstream().purge_stream(STREAM, subject="$O.payloads.C.>", keep=1)
        else:
            await bucket.put(name, b"other")
        await platform.agent(Carrier)
        stopped = await until(platform, "r", "blocked", "completed")
        assert (stopped["status"], stopped["error"]["type"]) == ("blocked", "Unreadable")
        assert ("was altered" if harm == "another value" else "is gone") in stopped["error"]["message"]
        await bucket.ensure()
        await bucket.delete(name)
        await bucket.put(name, kept)
        await client.resume("r")
        assert await run.result(timeout=20) == "x" * LARGE


async def test_each_value_is_read_from_where_it_stands_whatever_the_setting_is_now(settings, own, bucket, pool):
    (there,) = await vault_of(own).put(own, [(TEXT, SPOT)])
    with pytest.raises(Unreadable, match="not connected to NATS"):
        await vault_of(pool).open(pool, [(there, SPOT)])
    plain = await create_pool(settings, "test", size=2)
    try:
        vault_of(plain).objects = bucket
        assert await vault_of(plain).open(plain, [(there, SPOT)]) == [TEXT]
        assert await plain.fetchval(COUNT) == 1
        assert await vault_of(plain).put(plain, [(TEXT, SPOT)]) == [there]
        assert await plain.fetchval(COUNT) == 0, "a put brings it back to Postgres"
        await old(plain)
        assert await Cleaner(plain, bucket).clean() == 1
        assert await bucket.get(NAME) is None
    finally:
        await plain.close()


async def test_a_namespace_has_a_bucket_of_its_own(settings, bucket, nc):
    staging = await connect(settings.model_copy(update={"namespace": "staging"}), "test")
    try:
        inside = Bucket(staging, "staging")
        await inside.ensure()
        await inside.put("n", b"theirs")
        assert (await inside.get("n"), await bucket.get("n")) == (b"theirs", None)
        assert await inside.names(after=0, limit=9) == (["n"], 2)
        assert {each.config.name for each in await nc.jetstream().streams_info()} == {STREAM, "OBJ_staging-payloads"}
        await inside.delete("n")
        assert (await inside.names(after=0, limit=9))[0] == []
    finally:
        await staging.close()


async def test_a_server_that_is_away_is_said_to_be(nc, bucket):
    await nc.close()
    for act in (bucket.get(NAME), bucket.put(NAME, b"x"), bucket.delete(NAME)):
        with pytest.raises(ConnectionError, match="NATS is away"):
            await act
    assert Vault().objects is None
