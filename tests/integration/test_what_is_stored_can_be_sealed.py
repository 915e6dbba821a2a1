"""With keys, what runs and conversations hold stands nowhere in the clear, and everything works as without."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.agent.durable import DurableAgent
from perdure.agent.tools import tool
from perdure.engine import Context, Retry, workflow
from perdure.errors import InternalError, RunFailed, StepFailed
from perdure.testing.models import Call, ScriptedModel
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually

K1, K2 = (f"{name}:{base64.b64encode(name.encode() * 16).decode()}" for name in ("k1", "k2"))
CANARY = "canary-in-the-mine"
ONCE = Retry(max_attempts=1)


class Miner(BaseAgent):
    name = "miner"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> Any:
        found = [await ctx.step("dig", self.dig, task["text"])]
        try:
            await ctx.step("fall", self.fall, task["text"], retry=Retry(max_attempts=2, delay=0.01))
        except StepFailed as error:
            found.append(error.cause["message"])
        found.append(await ctx.transaction("note", self.note, task["text"]))
        found.append(await ctx.call("miner", {"text": task["text"]}, workflow="below"))
        await ctx.progress(0.5, task["text"])
        await ctx.emit({"said": task["text"]}, type="shout")
        found.append(await ctx.wait_signal("up"))
        found.append(await ctx.step("large", self.large, task["text"]))
        return found

    @workflow
    async def below(self, ctx: Context, task: dict[str, Any]) -> str:
        return await ctx.step("dig", self.dig, task["text"])

    @workflow
    async def fails(self, ctx: Context, task: dict[str, Any]) -> None:
        raise ValueError(task["text"])

    async def dig(self, text: str) -> str:
        return f"{text} was found"

    async def fall(self, text: str) -> None:
        raise ValueError(f"{text} fell")

    async def large(self, text: str) -> str:
        return text + "." * 300_000

    @staticmethod
    async def note(_connection: Any, text: str) -> str:
        return f"{text} was noted"


EXPECTED = [
    f"{CANARY} was found",
    f"{CANARY} fell",
    f"{CANARY} was noted",
    f"{CANARY} was found",
    f"{CANARY} may come up",
    CANARY + "." * 300_000,
]


def with_keys(settings: Any, *keys: str) -> Any:
    return settings.model_copy(update={"encryption_keys": ",".join(keys)})


async def stores(pool: Any, redis: Any, nc: Any) -> dict[str, bytes]:
    """Everything that is stored, by where."""
    found: dict[str, bytes] = {}
    tables = (
        "SELECT relname FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace"
    )
    for table in await pool.fetch(tables):
        rows = await pool.fetch(f'SELECT to_jsonb(t) AS row FROM "{table["relname"]}" AS t')
        text = "\n".join(record["row"] for record in rows)
        binary = (part.partition('"')[0] for part in text.split('"\\\\x')[1:])  # a bytea is shown in hex
        found[table["relname"]] = text.encode() + b"".join(bytes.fromhex(each) for each in binary)
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        read = {b"hash": redis.hgetall, b"string": redis.get}.get(kind, redis.dump)
        found[f"redis {key!r}"] = repr((key, await read(key))).encode()
    js = nc.jetstream()
    for stream in await js.streams_info():
        text = b""
        for seq in range(stream.state.first_seq, stream.state.last_seq + 1):
            try:
                message = await js.get_msg(stream.config.name, seq)
            except Exception:  # noqa: BLE001 -- a message that was acked is gone
                continue
            text += (message.data or b"") + repr(message.headers).encode()
        found[stream.config.name] = text
    return found


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
async def test_no_store_holds_a_word_of_a_run(settings, nc, pool, redis, sealed):
    used = with_keys(settings, K1) if sealed else settings
    async with in_process(used, nc) as platform, Client(used) as client:
        process = await platform.agent(Miner)
        run = await client.start("miner", {"text": CANARY}, run_id="r")
        await until(platform, "r", "waiting")
        await run.signal("up", f"{CANARY} may come up")
        assert await run.result(timeout=10) == EXPECTED
        failed = await client.start("miner", {"text": CANARY}, workflow="fails")
        with pytest.raises(RunFailed, match=CANARY):
            await failed.result(timeout=10)
        with pytest.raises(RunFailed, match=CANARY):
            await platform.ask("miner", {"text": CANARY}, workflow="fails")
        answer = await platform.ask("miner", {"text": CANARY}, workflow="below", run_id="asked")
        assert answer["output"] == f"{CANARY} was found"

        details = await run.details()
        assert details["task"] == {"text": CANARY}
        assert details["output"] == EXPECTED
        assert CANARY in str((await run.history())["rows"])
        listed = await client.list(agent="miner", status="failed")
        assert [CANARY in each["error"]["message"] for each in listed.runs] == [True, True]
        events = [event async for event in run.events()]
        assert {"said": CANARY} in [event["data"] for event in events]
        assert any(event["type"] == "tool.progress" and event["data"]["text"] == CANARY for event in events)

        found = await stores(pool, redis, nc)
        assert min(len(found["RUN_EVENTS"]), len(found["journal"])) > 1000
        holds = {name for name, text in found.items() if CANARY.encode() in text}
        assert holds == (set() if sealed else {"runs", "journal", "signals", "payloads", "RUN_EVENTS"})
        assert process.worker.fences == 0


async def test_no_store_holds_a_word_of_a_conversation(settings, nc, pool, redis):
    @tool(background=True)
    async def slow(what: str, ctx: Context) -> str:
        """Work."""
        await ctx.progress(0.5, f"half of {what}")
        return f"{what} is done"

    @tool(requires_approval=True)
    async def careful(what: str) -> str:
        """Ask first."""
        return f"{what} was allowed"

    used = with_keys(settings, K1)
    said = ScriptedModel(
        Call("slow", {"what": CANARY}), f"{CANARY} began", Call("careful", {"what": CANARY}), f"{CANARY} ended"
    )
    agent = DurableAgent("desk", model=said, tools=[slow, careful])
    async with in_process(used, nc, agent) as platform, Client(used) as client:
        first = await client.start("desk", f"do {CANARY}", session_id="s")
        assert CANARY in str(await first.result(timeout=10))
        await eventually(
            lambda: pool.fetchval("SELECT EXISTS (SELECT FROM session_results WHERE status = 'completed')"),
            message="the background call is over",
        )
        second = await client.start("desk", f"and {CANARY}", session_id="s")

        async def asked() -> Any:
            return (await platform.request("run.approvals", {"run_id": second.run_id}))["approvals"]

        [approval] = await eventually(asked)
        assert approval["arguments"] == {"what": CANARY}
        await second.approve(approval["call_id"], approval["arguments_hash"], "deny", reason=f"no {CANARY}")
        await second.result(timeout=10)
        told = [message.get("content") or "" for message in said.requests[-1].messages]
        assert any(f"{CANARY} is done" in text for text in told), "the background call's result"
        assert any(f"no {CANARY}" in text for text in told), "the person's reason"

        found = await stores(pool, redis, nc)
        assert min(len(found["session_messages"]), len(found["approvals"])) > 300
        assert {name for name, text in found.items() if CANARY.encode() in text} == set()


async def test_keys_change_while_runs_are_in_flight(settings, nc, pool):
    old, both, new = with_keys(settings, K1), with_keys(settings, K2, K1), with_keys(settings, K2)
    async with in_process(old, nc) as platform:
        await platform.agent(Miner)
        await platform.start_run("miner", {"text": CANARY}, run_id="r")
        await until(platform, "r", "waiting")
    async with in_process(new, nc, Miner) as platform:
        await platform.request("run.signal", {"run_id": "r", "name": "up", "payload": f"{CANARY} may come up"})
        stopped = await until(platform, "r", "blocked")
        assert "sealed with key 'k1', and this process has only k2" in stopped["error"]["message"]
        with pytest.raises(InternalError, match="key 'k1'"):
            await platform.request("payload.get", {"run_id": "r", "what": "task"})
    async with in_process(both, nc, Miner) as platform, Client(settings) as client:
        run = await client.resume("r")
        assert await run.result(timeout=10) == EXPECTED
        details = await run.details()
        assert details["task"] == {"text": CANARY}
        keys = await pool.fetch("SELECT result::jsonb ->> 'key' AS key FROM journal WHERE run_id = 'r' ORDER BY seq")
        assert {"k1", "k2"} <= {record["key"] for record in keys}
        keyless = [event async for event in run.events()]
        assert "sealed" in keyless[0]["data"]
        assert CANARY not in str(keyless)
        assert keyless[-1]["type"] == "run.completed"


async def test_plain_runs_go_on_when_keys_come(settings, nc):
    async with in_process(settings, nc, Miner) as platform:
        await platform.start_run("miner", {"text": CANARY}, run_id="r")
        await until(platform, "r", "waiting")
    async with in_process(with_keys(settings, K1), nc, Miner) as platform, Client(settings) as client:
        run = await client.get("r")
        await run.signal("up", f"{CANARY} may come up")
        assert await run.result(timeout=10) == EXPECTED


async def test_copies_of_sealed_runs_are_runs_of_their_own(settings, nc, pool):
    used = with_keys(settings, K1)
    async with in_process(used, nc, Miner), Client(used) as client:
        run = await client.start("miner", {"text": CANARY}, run_id="r")
        await run.signal("up", f"{CANARY} may come up")
        assert await run.result(timeout=10) == EXPECTED
        fork = await client.fork("r", "large")
        again = await client.restart("r")
        await again.signal("up", f"{CANARY} may come up")
        await pool.execute("DELETE FROM runs WHERE run_id = 'r'")
        assert await fork.result(timeout=10) == EXPECTED
        assert await again.result(timeout=10) == EXPECTED


async def test_a_debounced_task_is_sealed_for_the_run_that_takes_it(settings, nc, pool):
    used = with_keys(settings, K1)
    async with in_process(used, nc, Miner) as platform:
        said = {"workflow": "below", "debounce_key": "k", "debounce": 0.3}
        first = await platform.start_run("miner", {"text": "earlier"}, **said)
        assert await platform.start_run("miner", {"text": CANARY}, **said) == first
        assert CANARY not in await pool.fetchval("SELECT task::text FROM runs")
        assert (await until(platform, first, "completed", "blocked"))["output"] == f"{CANARY} was found"


async def test_a_value_that_was_moved_to_another_place_is_not_believed(settings, nc, pool):
    used = with_keys(settings, K1)
    async with in_process(used, nc) as platform, Client(used) as client:
        process = await platform.agent(Miner)
        for run_id in ("theirs", "mine"):
            await client.start("miner", {"text": f"{run_id} {CANARY}"}, run_id=run_id)
            await until(platform, run_id, "waiting")
        await pool.execute(
            "UPDATE journal SET result = (SELECT result FROM journal WHERE run_id = 'theirs' AND seq = 1) "
            "WHERE run_id = 'mine' AND seq = 1"
        )
        await platform.request("run.signal", {"run_id": "mine", "name": "up", "payload": 1})
        stopped = await until(platform, "mine", "blocked", "completed")
        assert (stopped["status"], stopped["error"]["type"]) == ("blocked", "Unreadable")
        assert "moved here from another place" in stopped["error"]["message"]
        assert "theirs" not in orjson.dumps(stopped).decode()
        assert not process.worker.executions
