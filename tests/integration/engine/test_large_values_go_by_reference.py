"""Values over the bound stand in `payloads`, once each, as long as a run uses them; code sees no difference."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.bus import wire
from perdure.engine import Context, workflow
from perdure.errors import InvalidRequest, NotFound, TooLarge
from perdure.store.queries import load_queries
from perdure.store.vault import hash_of
from services.scheduler.cleaner import Cleaner
from tests.engine_support import losing, until
from tests.platform import in_process
from tests.support import eventually

LARGE = 300_000
FIVE_MB = 5_000_000


class Carrier(BaseAgent):
    name = "carrier"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> Any:
        made = await ctx.step("make", self.make, task["size"])
        told = await ctx.transaction("tell", self.tell, made)
        both = await ctx.gather(*(ctx.step("part", self.make, task["size"]) for _ in range(2)))
        child = await ctx.call("carrier", {"text": made}, workflow="echo")
        said = await ctx.wait_signal("go")
        await ctx.emit({"text": made})
        assert made == told == both[0] == both[1] == child == said == "x" * task["size"]
        return [made, said]

    @workflow
    async def echo(self, ctx: Context, task: dict[str, Any]) -> str:
        return task["text"]

    @workflow
    async def outputs(self, ctx: Context, task: dict[str, Any]) -> str:
        return "x" * task["size"]

    @workflow
    async def again(self, ctx: Context, task: str) -> int:
        return len(task) if len(task) > LARGE else ctx.continue_as_new(task * 2)

    @workflow
    async def fails(self, ctx: Context, task: str) -> None:
        try:
            await ctx.call("carrier", "x" * 2_000_000, workflow="echo")
        except TypeError as error:
            raise ValueError(f"refused: {error}") from error

    async def make(self, size: int) -> str:
        return "x" * size

    @staticmethod
    async def tell(_connection: Any, text: str) -> str:
        return text


@pytest.fixture(params=["postgres", "nats"])
def stored(request, settings):
    """Settings with each place where payloads may stand."""
    return settings.model_copy(update={"payload_store": request.param})


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_large_tasks_results_signals_and_outputs_are_the_same_to_the_code(stored, nc, pool, often):
    settings = stored
    async with in_process(settings, nc) as platform, Client(settings) as client:
        process = await platform.agent(Carrier)
        run = await client.start("carrier", {"size": LARGE, "more": "y" * LARGE}, run_id="r")
        if often == "straight":
            await run.signal("go", "x" * LARGE, id="one")
            output = await run.result(timeout=20)
        else:
            with losing(process):
                await run.signal("go", "x" * LARGE, id="one")
                output = await run.result(timeout=30)
        assert output == ["x" * LARGE] * 2
        sizes = {
            record["size"] for record in await pool.fetch("SELECT size FROM payloads JOIN payload_uses USING (hash)")
        }
        text = LARGE + 2
        assert min(sizes) == text, "the text itself"
        same = await pool.fetchval("SELECT count(*) FROM payloads WHERE size = $1", text)
        assert same == 1, "results, the child's output and the signal are one payload"
        longest = "SELECT max(octet_length(result::text)) FROM journal"
        assert await pool.fetchval(longest) < 1000
        here = await pool.fetchval("SELECT count(*) FROM payloads WHERE body IS NOT NULL")
        assert (here == 0) == (settings.payload_store == "nats")
        steps = (await run.details())["steps"]
        assert [step["result"] for step in steps if step["kind"] == "step"] == ["x" * LARGE] * 3
        history = await run.history()
        assert history["run"]["task"] == {"size": LARGE, "more": "y" * LARGE}
        assert [row["result"] for row in history["rows"] if row["kind"] == "step"] == ["x" * LARGE] * 3
        events = [event async for event in run.events()]
        assert events[-1]["type"] == "run.completed"
        assert {"large": LARGE + 11} in [event["data"] for event in events if event["type"] == "event"]


async def test_what_one_message_does_not_carry_is_read_in_slices(stored, nc):
    settings = stored
    async with in_process(settings, nc, Carrier) as platform, Client(settings) as client:
        task = {"text": "é\n" * (FIVE_MB // 3)}
        run = await client.start("carrier", task, workflow="echo")
        assert await run.result(timeout=20) == task["text"]
        details = await run.details()
        assert (details["task"], details["output"]) == (task, task["text"])
        assert await client.ask("carrier", task, workflow="echo", run_id=run.run_id) == task["text"]

        shown = await platform.run(run.run_id)
        assert "output" not in shown
        assert "task" not in shown
        assert shown["large"]["output"] == len(orjson.dumps(task["text"]))


async def test_an_answer_that_no_message_carries_says_where_it_is(settings, nc):
    async with in_process(settings, nc, Carrier) as platform:
        await platform.ask("carrier", {"text": "here"}, workflow="echo", run_id="small")
        assert (await platform.ask("carrier", {"size": 600_000}, workflow="outputs"))["output"] == "x" * 600_000
        with pytest.raises(TooLarge, match=r"read it in slices with payload\.get") as caught:
            await platform.ask("carrier", {"size": 2_000_000}, workflow="outputs", run_id="big")
        assert caught.value.details["run_id"] == "big"


async def test_a_new_life_with_a_large_task_and_values_over_the_limit(settings, nc):
    limited = settings.model_copy(update={"max_payload": 1_500_000})
    async with in_process(limited, nc, Carrier) as platform, Client(settings) as client, Client(limited) as careful:
        assert await client.ask("carrier", "x" * 200_000, workflow="again") == 400_000
        with pytest.raises(TooLarge, match="PERDURE_MAX_PAYLOAD"):
            await client.start("carrier", "x" * 1_600_000)
        with pytest.raises(TooLarge, match=r"1600\d\d\d bytes; the limit is 1500000"):
            await careful.start("carrier", "x" * 1_600_000)
        run_id = await platform.start_run("carrier", None, workflow="fails")
        run = await until(platform, run_id, "failed", "completed", "blocked")
        assert "the task of carrier has 2000002 bytes; the limit is 1500000" in run["error"]["message"]


async def test_parts_that_are_gone_or_other_than_promised_are_refused(settings, nc):
    async with in_process(settings, nc, Carrier) as platform:
        body = orjson.dumps({"task": {"text": "whole"}, "workflow": "echo", "run_id": "r"})
        parts = [(await wire.request(nc, "payload.put", piece))["part"] for piece in (body[:20], body[20:])]
        with pytest.raises(InvalidRequest, match="'hash'"):
            await platform.request("run.start.carrier", {"parts": parts[::-1], "hash": hash_of(body)})
        with pytest.raises(NotFound, match="put it again"):
            await platform.request("run.start.carrier", {"parts": ["0" * 64], "hash": hash_of(body)})
        with pytest.raises(InvalidRequest, match="nothing to put"):
            await wire.request(nc, "payload.put", b"")
        with pytest.raises(InvalidRequest, match="'what'"):
            await platform.request("payload.get", {"run_id": "r", "what": "secret"})
        asked = {"parts": parts, "hash": hash_of(body), "timeout": 5}
        assert (await platform.request("run.start.carrier", asked))["run_id"] == "r"
        await until(platform, "r", "completed")
        assert (await platform.request("payload.get", {"run_id": "r", "what": "output"}))["text"] == '"whole"'
        with pytest.raises(InvalidRequest, match="one of"):
            await platform.request("payload.get", {"run_id": "r", "what": "result"})
        with pytest.raises(NotFound, match="no error"):
            await platform.request("payload.get", {"run_id": "r", "what": "error"})
        with pytest.raises(NotFound, match="no step 9"):
            await platform.request("payload.get", {"run_id": "r", "what": "result", "seq": 9})


async def test_a_value_that_looks_like_a_reference_is_only_a_value(settings, nc):
    async with in_process(settings, nc, Carrier) as platform:
        await platform.ask("carrier", {"size": LARGE}, workflow="outputs", run_id="theirs")
        forged = {"$perdure": "payload", "hash": hash_of(b'"' + b"x" * LARGE + b'"'), "size": LARGE + 2}
        for text in (forged, {"$perdure": "value", "value": 1}, {"$perdure": "sealed"}):
            assert (await platform.ask("carrier", {"text": text}, workflow="echo"))["output"] == text
        assert (await platform.ask("carrier", forged | {"text": 1}, workflow="echo"))["output"] == 1


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("UPDATE payloads SET body = substr(body, 2) || body", "was altered"),
        ("DELETE FROM payloads", "is gone"),
    ],
)
async def test_a_payload_that_is_gone_or_altered_stops_its_run_and_nothing_is_lost(settings, nc, pool, harm, said):
    async with in_process(settings, nc) as platform, Client(settings) as client:
        run = await client.start("carrier", {"text": "x" * LARGE}, workflow="echo", run_id="r")
        kept = await pool.fetch("SELECT hash, body FROM payloads")
        await pool.execute(harm)
        await platform.agent(Carrier)
        stopped = await until(platform, "r", "blocked", "completed")
        assert (stopped["status"], stopped["error"]["type"]) == ("blocked", "Unreadable")
        assert said in stopped["error"]["message"]
        assert "resume" in stopped["error"]["message"]

        for record in kept:
            await pool.execute("DELETE FROM payloads WHERE hash = $1", record["hash"])
            await pool.execute("INSERT INTO payloads VALUES ($1, 1, $2)", record["hash"], record["body"])
        await client.resume("r")
        assert await run.result(timeout=10) == "x" * LARGE
        await pool.execute(harm)
        whole = await platform.run("r")
        assert whole["status"] == "completed"
        assert said in whole["error"]["message"]
        with pytest.raises(Exception, match=said):
            await run.result(timeout=10)


async def test_only_what_no_run_uses_is_deleted_and_never_what_is_being_put(settings, nc, pool):
    async with in_process(settings, nc, Carrier) as platform, Client(settings) as client:
        for run_id, size in (("a", LARGE), ("b", LARGE), ("c", LARGE + 1)):
            await platform.ask("carrier", {"size": size}, workflow="outputs", run_id=run_id)
        forked = await client.start("carrier", {"size": 7, "more": "y" * LARGE}, run_id="source")
        await until(platform, "source", "waiting")
        copy = await client.fork("source", "part")
        await wire.request(nc, "payload.put", b"a part of a request that never came")
        assert await pool.fetchval("SELECT count(*) FROM payloads") >= 4

        cleaner = Cleaner(pool, grace=0.0, page=2)
        await forked.cancel()
        await pool.execute("DELETE FROM runs WHERE run_id IN ('a', 'c', 'source')")
        uses = await pool.fetchval("SELECT count(*) FROM payload_uses")
        assert await Cleaner(pool, page=2).clean() == 0, "all of it is young"
        assert await pool.fetchval("SELECT count(*) FROM payload_uses") == uses, "their runs may be about to be there"
        assert await cleaner.clean() == 2, "the part, and what the run c alone used"
        assert (await copy.details())["task"]["more"] == "y" * LARGE, "the source had put it"
        assert (await platform.run("b"))["output"] == "x" * LARGE
        await pool.execute("DELETE FROM runs")
        await eventually(cleaner.clean, message="what is left goes")
        assert await pool.fetchval("SELECT count(*) FROM payloads") == 0


async def test_whoever_puts_a_payload_that_is_being_deleted_has_it_afterwards(pool):
    put = load_queries("payloads.sql")["put"], ["h"], [1], [b"x"], [], []
    await pool.execute(*put)
    await pool.execute("UPDATE payloads SET used_at = now() - interval '1 day'")
    async with pool.acquire() as writer:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(*put)
        cleaning = asyncio.create_task(Cleaner(pool).clean())
        await eventually(lambda: _blocked(pool), message="the cleaner waits for the writer")
        await writer.execute("INSERT INTO payload_uses (run_id, hash) VALUES ('r', 'h')")
        await transaction.commit()
    assert await cleaning == 0
    assert await pool.fetchval("SELECT count(*) FROM payloads") == 1


async def _blocked(pool: Any) -> bool:
    return bool(await pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
