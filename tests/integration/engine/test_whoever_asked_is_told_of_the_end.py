"""Callbacks stand in the outbox with the end, and are delivered at least once; ends that were not told are told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from aiohttp import web

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.errors import InvalidRequest, PermanentError
from perdure.store.queries import load_queries
from perdure.webhooks import NotDelivered, verify
from services.scheduler.callbacks import Callbacks, _body
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually

ENDS = load_queries("ends.sql")
SECRET = "a secret of more than sixteen bytes"


class Ending(BaseAgent):
    name = "ending"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        if task.get("waits"):
            return await ctx.wait_signal("go")
        if task.get("fails"):
            raise PermanentError("no")
        return task


class Receiver:
    """An HTTP server of somebody else."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []
        self.url = ""
        self.held: asyncio.Event | None = None

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.held is not None:
            await self.held.wait()
        verify(SECRET, request.headers, body)
        self.got.append(({name.lower(): value for name, value in request.headers.items()}, orjson.loads(body)))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)


@asynccontextmanager
async def listening():
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[union-attr]
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver():
    async with listening() as receiver:
        yield receiver


@pytest.fixture
def open_settings(settings, monkeypatch):
    monkeypatch.setenv("PERDURE_CALLBACK_SECRET_OURS", SECRET)
    return settings.model_copy(
        update={"callback_private": True, "callback_secret": "secret://env/PERDURE_CALLBACK_SECRET_OURS"}
    )


@pytest.fixture
async def ending(open_settings, nc):
    async with in_process(open_settings, nc) as platform:
        await platform.agent(Ending)
        yield platform


async def delivered(platform, run_id: str) -> dict[str, Any]:
    async def there() -> Any:
        callbacks = (await platform.run(run_id))["callbacks"]
        return callbacks[0] if callbacks and callbacks[0]["state"] != "due" else None

    return await eventually(there)


async def test_a_callback_that_is_due_is_given_to_one_scheduler_for_a_while(pool):
    starts = [runs.new_start(run_id, "ending", 1) for run_id in ("theirs", "mine", "later", "over")]
    for start in starts:
        start.callback = '{"subject":"told"}'
    await runs.accept(pool, starts)
    await pool.execute("UPDATE runs SET status = 'failed', end_seq = 1, finished_at = now()")
    await pool.execute("UPDATE callbacks SET next_try = now() + interval '1 hour' WHERE run_id = 'later'")
    await pool.execute("UPDATE callbacks SET state = 'delivered' WHERE run_id = 'over'")

    async def taken(seconds: float) -> list[str]:
        async with pool.acquire() as connection:
            await connection.execute("SET lock_timeout = '2s'")
            found = await connection.fetch(ENDS["take_callbacks"], 10, seconds)
            await connection.execute("RESET lock_timeout")
        return sorted(record["run_id"] for record in found)

    async with pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.fetch("SELECT 1 FROM callbacks WHERE run_id = 'theirs' FOR UPDATE")
        assert await taken(3600.0) == ["mine"]
        await transaction.rollback()
    assert await taken(3600.0) == ["theirs"]
    assert await taken(3600.0) == [], "each is tried by whoever took it"
    (mine, over) = [f"run_{run_id}_1" for run_id in ("mine", "over")]
    for callback in (mine, over):
        await pool.execute(ENDS["callback_failed"], callback, "no", 0.0)
    assert await taken(0.0) == ["mine"], "what was delivered meanwhile stays so"


async def test_a_callback_waits_as_long_as_its_receiver_says_and_carries_its_own_end_alone(settings, nc, pool):
    start = runs.new_start("r", "ending", 1)
    start.callback = '{"subject":"told"}'
    await runs.accept(pool, [start])
    await pool.execute("UPDATE runs SET status = 'failed', end_seq = 4, error = '{}', finished_at = now()")
    (row,) = await pool.fetch(ENDS["take_callbacks"], 10, 60.0)
    callbacks = Callbacks(pool, nc, settings)
    await callbacks._failed(row, NotDelivered("come back later", retry_after=3600.0))
    assert await pool.fetchval("SELECT next_try > now() + interval '50 minutes' FROM callbacks")
    ends = await pool.fetch(ENDS["ends"], ["r"])
    reply = {"status": "failed", "error": {"type": "E"}}
    assert orjson.loads(_body(row, (ends[0], reply)))["data"]["error"] == {"type": "E"}
    await pool.execute("UPDATE runs SET status = 'completed', end_seq = 9")  # it was resumed meanwhile
    ends = await pool.fetch(ENDS["ends"], ["r"])
    assert "output" not in orjson.loads(_body(row, (ends[0], {"status": "completed", "output": 1})))["data"]


async def test_an_end_is_told_for_itself_and_doubted_of_the_process_that_was_away(pool):
    names = ("now", "before", "others")
    await runs.accept(pool, [runs.new_start(run_id, "ending", 1) for run_id in names])
    await pool.execute("UPDATE runs SET status = 'failed', end_seq = 5, finished_at = now(), process_id = 'p'")
    await pool.execute("UPDATE runs SET finished_at = now() - interval '1 hour' WHERE run_id = 'before'")
    await pool.execute("UPDATE runs SET process_id = 'q' WHERE run_id = 'others'")
    await pool.execute(ENDS["doubt_ends"], "p", datetime.now(UTC) - timedelta(minutes=1))

    async def untold(before: timedelta) -> list[str]:
        found = await pool.fetch(ENDS["untold_ends"], datetime.now(UTC) + before, 10)
        return sorted(record["run_id"] for record in found)

    assert await untold(timedelta(minutes=1)) == ["now"]
    assert await untold(-timedelta(minutes=1)) == [], "its event may be on its way"
    await pool.execute(ENDS["told_ends"], ["now"], [4])
    assert await untold(timedelta(minutes=1)) == ["now"], "it was resumed and has ended again"
    await pool.execute(ENDS["told_ends"], ["now"], [5])
    assert await untold(timedelta(minutes=1)) == []


async def test_a_url_is_told_of_each_kind_of_end_signed_and_with_an_id(ending, receiver, open_settings):
    async with Client(open_settings) as client:
        done = await client.start("ending", {"n": 1}, callback=receiver.url)
        failed = await client.start("ending", {"fails": True}, callback={"url": receiver.url})
        waits = await client.start("ending", {"waits": True}, callback=receiver.url)
        killed = await client.start("ending", {"waits": True}, callback=receiver.url)
        pending = await client.start("nobody", {}, callback=receiver.url)
        await until(ending, waits.run_id, "waiting")
        await waits.cancel()
        await killed.terminate()
        await pending.cancel()
    await eventually(lambda: len(receiver.got) == 5)
    told = {body["data"]["run_id"]: (headers, body) for headers, body in receiver.got}
    headers, body = told[done.run_id]
    assert body["type"] == "run.completed"
    assert body["data"] | {"session_id": None} == {
        "run_id": done.run_id, "status": "completed", "agent": "ending", "workflow": "run", "session_id": None,
        "output": {"n": 1},
    }  # fmt: skip
    assert headers["webhook-id"] == (await delivered(ending, done.run_id))["callback_id"]
    assert told[failed.run_id][1]["data"]["error"]["message"] == "no"
    for handle in (waits, killed, pending):
        assert told[handle.run_id][1]["type"] == "run.cancelled"


async def test_a_receiver_that_fails_is_told_again_under_the_same_id_until_it_accepts(ending, receiver, pool):
    receiver.answers = [500, 503]
    run_id = await ending.start_run("ending", {}, callback=receiver.url)
    for tries in (1, 2):
        await eventually(lambda tries=tries: len(receiver.got) == tries)
        await eventually(lambda: pool.fetchval("SELECT last_error FROM callbacks WHERE next_try > clock_timestamp()"))
        await pool.execute("UPDATE callbacks SET next_try = now()")
    assert (await delivered(ending, run_id))["state"] == "delivered"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len(receiver.got) == 3


async def test_a_receiver_that_never_takes_it_is_given_up_after_so_many_tries(open_settings, nc, receiver):
    receiver.answers = [500] * 9
    async with in_process(open_settings.model_copy(update={"callback_max_attempts": 1}), nc, Ending) as platform:
        run_id = await platform.start_run("ending", {}, callback={"url": receiver.url})
        callback = await delivered(platform, run_id)
    assert (callback["state"], callback["attempts"], len(receiver.got)) == ("given_up", 1, 1)


async def test_a_receiver_that_is_slow_holds_up_no_other(ending, receiver):
    async with listening() as slow:
        slow.held = asyncio.Event()
        waits = await ending.start_run("ending", {}, callback=slow.url)

        async def asked() -> bool:
            return [each["attempts"] for each in (await ending.run(waits))["callbacks"]] == [1]

        await eventually(asked)
        quick = await ending.start_run("ending", {}, callback=receiver.url)
        assert (await delivered(ending, quick))["state"] == "delivered"
        assert (await ending.run(waits))["callbacks"][0]["state"] == "due"
        slow.held.set()
        assert (await delivered(ending, waits))["state"] == "delivered"


async def test_a_receiver_that_is_gone_is_given_up(ending, receiver):
    receiver.answers = [410]
    run_id = await ending.start_run("ending", {}, callback=receiver.url)
    callback = await delivered(ending, run_id)
    assert (callback["state"], callback["attempts"], callback["last_error"]) == ("given_up", 1, "answered 410")


async def test_a_scheduler_that_dies_with_a_callback_in_its_hands_leaves_it_to_the_next(ending, receiver, pool):
    run_id = await ending.start_run("ending", {}, callback=receiver.url)
    await delivered(ending, run_id)
    # As it is left behind by one that died after it had sent, and before it could say so.
    await pool.execute("UPDATE callbacks SET state = 'due', next_try = now()")
    await eventually(lambda: len(receiver.got) == 2)
    assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]


async def test_a_run_that_is_resumed_and_ends_again_is_told_again(ending, receiver):
    run_id = await ending.start_run("ending", {"fails": True}, callback=receiver.url)
    await eventually(lambda: len(receiver.got) == 1)
    await ending.request("run.resume", {"run_id": run_id})
    await eventually(lambda: len(receiver.got) == 2)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 2


async def test_a_subject_is_told_too_and_a_stream_on_it_has_it_once(ending, nc, pool):
    heard = await nc.subscribe("orders.done")
    await nc.jetstream().add_stream(name="ORDERS", subjects=["stored.>"])
    await ending.start_run("ending", {"n": 2}, callback="orders.done")
    message = await heard.next_msg(timeout=5)
    assert orjson.loads(message.data)["data"]["output"] == {"n": 2}
    stored = await ending.start_run("ending", {"n": 3}, callback={"subject": "stored.done"})
    await delivered(ending, stored)
    await pool.execute("UPDATE callbacks SET state = 'due', next_try = now() WHERE run_id = $1", stored)
    await eventually(
        lambda: pool.fetchval("SELECT attempts = 2 AND state = 'delivered' FROM callbacks WHERE run_id = $1", stored)
    )
    assert (await nc.jetstream().stream_info("ORDERS")).state.messages == 1


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        ("http://10.0.0.1/x", "callback.url"),
        ("ftp://example.com", "callback.url"),
        ("config.set.assistant", "callback"),
        ("run.events.x", "callback"),
        ("$SYS.x", "callback"),
        ("a.*", "callback"),
        ({"url": "https://example.com", "subject": "x"}, "callback"),
        ({"url": "https://example.com", "secret": "secret://env/OPENAI_API_KEY"}, "callback.secret"),
        ({"uri": "https://example.com"}, "callback"),
    ],
)
async def test_a_callback_that_may_not_be_is_refused_before_the_run_is(settings, nc, callback, named):
    settings = settings.model_copy(update={"callback_secret": "secret://env/PERDURE_CALLBACK_SECRET"})
    async with in_process(settings, nc) as platform:
        with pytest.raises(InvalidRequest, match=f"'{named}"):
            await platform.start_run("ending", {}, callback=callback)
        assert (await platform.request("run.list", {}))["runs"] == []


async def test_a_url_without_any_secret_is_refused(settings, nc):
    async with in_process(settings, nc) as platform:
        with pytest.raises(InvalidRequest, match="PERDURE_CALLBACK_SECRET"):
            await platform.start_run("ending", {}, callback="https://example.com/hook")


# -- ends that were not told ------------------------------------------------------------------------------------------


async def test_an_end_whose_process_dies_before_its_event_is_told_by_the_sweeper(ending, nc):
    process = ending.services[-1]
    process.worker.events = Mute(process.worker.events)
    ended = await nc.subscribe("run.ended.*.*")
    run_id = await ending.start_run("ending", {"n": 1})
    await until(ending, run_id, "completed")
    events = await nc.subscribe(f"run.events.{run_id}")
    ending.services.remove(process)
    await process.abort()
    event = orjson.loads((await events.next_msg(timeout=10)).data)
    assert (event["type"], event["data"]["output"]) == ("run.completed", {"n": 1})
    reply = orjson.loads((await ended.next_msg(timeout=5)).data)
    assert (reply["run_id"], reply["output"]) == (run_id, {"n": 1})


class Mute:
    """Events that never leave."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def moved(self, *_: Any) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)


async def test_an_end_that_was_told_is_not_told_twice(ending, nc, pool):
    run_id = await ending.start_run("ending", {"n": 1})
    events = await nc.subscribe(f"run.events.{run_id}")
    await until(ending, run_id, "completed")
    await pool.execute("UPDATE runs SET untold = TRUE, finished_at = now() - interval '1 minute'")
    await eventually(lambda: pool.fetchval("SELECT NOT untold FROM runs WHERE run_id = $1", run_id))
    kinds = []
    await nc.flush()
    while events.pending_msgs:
        kinds.append(orjson.loads((await events.next_msg()).data)["type"])
    assert kinds.count("run.completed") <= 1


async def test_an_end_while_nats_was_away_is_told_when_it_is_back(ending, pool):
    process = ending.services[-1]
    run_id = await ending.start_run("ending", {"n": 1})
    await until(ending, run_id, "completed")
    await process.on_reconnect()
    await eventually(lambda: pool.fetchval("SELECT NOT untold FROM runs WHERE run_id = $1", run_id))
    assert await pool.fetchval("SELECT count(*) FROM runs WHERE process_id = $1", process.worker.process_id) == 1


@pytest.mark.in_memory
async def test_a_run_that_needs_review_is_told_to_whoever_waits(ending, nc):
    ended = await nc.subscribe("run.ended.*.*")
    run_id = await ending.start_run("ending", {"waits": True})
    process = ending.services[-1]
    await eventually(lambda: run_id in process.worker.executions)
    process.worker.engine_failed(process.worker.executions[run_id], RuntimeError("a fault"))
    reply = orjson.loads((await ended.next_msg(timeout=5)).data)
    assert (reply["status"], reply["run_id"]) == ("needs_review", run_id)


async def test_the_outbox_takes_an_end_in_the_transaction_of_the_end(pool):
    await runs.accept(pool, [runs.new_start("r", "a", 1)])
    await pool.execute('UPDATE runs SET callback = \'{"subject": "x"}\'')
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE runs SET status = 'completed', finished_at = now(), end_seq = 3")
        assert await connection.fetchval("SELECT callback_id FROM callbacks") == "run_r_3"
        await transaction.rollback()
    assert await pool.fetchval("SELECT count(*) FROM callbacks") == 0
