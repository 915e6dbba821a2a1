"""Histories of runs, written as files, replayed in memory against the code of today and of tomorrow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from perdure import AgentConfig, BaseAgent, Context, PermanentError, Retry, StepFailed, workflow
from perdure.client import Client
from perdure.engine.history import page
from perdure.testing import Diverged, Recorder
from tests.command import perdure
from tests.engine_support import at_rest, losing, signal, until
from tests.integration.engine.test_replay_hands_over_outcomes_in_journal_order import Everything
from tests.platform import in_process
from tests.support import eventually

ONCE = Retry(max_attempts=1)


class Orders(BaseAgent):
    name = "orders"
    effects: int = 0

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        amount = await ctx.step("price", self.price, task["item"])
        await ctx.gather(ctx.step("reserve", self.effect, 1), ctx.step("announce", self.effect, 2))
        try:
            await ctx.step("refuse", self.refuse, retry=ONCE)
        except StepFailed:
            await ctx.sleep("cool off", 0.01)
        said = await ctx.wait_signal("paid")
        config = await ctx.adopt_config()
        await ctx.step("ship", self.effect, config.get_setting("courier", "by bike"))
        return [amount, said]

    async def price(self, item: str) -> float:
        type(self).effects += 1
        return 9.5

    async def effect(self, what: Any) -> None:
        type(self).effects += 1

    async def refuse(self) -> None:
        raise PermanentError("no")


class OrdersOtherwise(Orders):
    """The code of tomorrow, which a run in flight could not go on with."""

    name = "orders"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.step("check stock", self.effect, 0)
        return await super().run(ctx, task)


class OrdersThatFail(Orders):
    name = "orders"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await super().run(ctx, task)
        raise ValueError("the last line is wrong")


class OrdersThatSayMore(Orders):
    name = "orders"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        found = await super().run(ctx, task)
        await ctx.step("thank", self.effect, "you")
        return [*found, "thanked"]


class OrdersPatched(Orders):
    name = "orders"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        if ctx.patched("stock is checked"):
            await ctx.step("check stock", self.effect, 0)
        return await super().run(ctx, task)


class OrdersThatDoze(Orders):
    name = "orders"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await asyncio.Event().wait()


async def waits_for_payment(platform, run_id: str) -> bool:
    return (await platform.run(run_id))["waiting_for"] == ["paid"]


@pytest.fixture
async def histories(settings, nc, tmp_path):
    """A folder with a completed run, one that waits, and one that has not begun."""
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Orders)
        for run_id in ("whole", "open"):
            await platform.start_run("orders", {"item": "lamp"}, run_id=run_id)
        for run_id in ("whole", "open"):
            await eventually(lambda run_id=run_id: waits_for_payment(platform, run_id))
        await platform.request("config.set.orders", {"configurations": {"courier": "by ship"}})
        await eventually(lambda: process.newest().get_setting("courier") == "by ship")
        await signal(platform, "whole", "paid", None)
        await until(platform, "whole", "completed")
        await at_rest(process)
        platform.services.remove(process)
        await process.stop()
        await platform.start_run("orders", {"item": "vase"}, run_id="new")
        folder = tmp_path / "histories"
        async with Client(settings) as client:
            await Recorder(folder).record(client, "whole", "open", "new")
    Orders.effects = 0
    return folder


async def test_histories_replay_against_the_code_that_made_them_and_against_code_that_fits(histories, replay_histories):
    for code in (Orders, OrdersPatched):
        found = {each.run_id: (each.rows, each.end) for each in await replay_histories(code, histories)}
        rows = found["open"][0]
        assert found == {"whole": (rows + 3, "completed"), "open": (rows, "waiting"), "new": (0, "goes on")}
    (more,) = await replay_histories(OrdersThatSayMore, histories / "whole.json")
    assert more.end == "goes on"
    assert Orders.effects == 0, "no step was executed"


async def test_code_that_a_run_in_flight_would_be_blocked_by_fails_with_the_same_words(histories, replay_histories):
    with pytest.raises(Diverged, match="2 of 3 histories diverge") as failed:
        await replay_histories(OrdersOtherwise, histories)
    assert failed.value.difference["journal"]["name"] == "price"
    assert "the journal has step 'price', and the code asked for step 'check stock'" in str(failed.value)
    with pytest.raises(Diverged, match="ends failed: ValueError: the last line is wrong"):
        await replay_histories(OrdersThatFail, histories)
    with pytest.raises(ValueError, match="agent 'orders', not of 'everything'"):
        await replay_histories(Everything, histories)


async def test_code_that_waits_for_something_else_than_ctx_is_told_so(histories, replay_histories, monkeypatch):
    monkeypatch.setattr("perdure.testing.replay.PATIENCE", 0.2)
    with pytest.raises(Diverged, match="not of ctx"):
        await replay_histories(OrdersThatDoze, histories / "whole.json")


async def test_a_workflow_or_a_version_that_is_gone_is_a_divergence(histories, replay_histories):
    class OrdersRenamed(BaseAgent):
        name = "orders"

        @workflow(version="2")
        async def run(self, ctx: Context, task: Any) -> Any:
            return None

    with pytest.raises(Diverged, match="the code has no workflow 'run', which this run has; it has 'run' '2'"):
        await replay_histories(OrdersRenamed, histories / "whole.json")


async def test_a_file_that_is_no_history_is_named(histories, replay_histories, tmp_path):
    with pytest.raises(ValueError, match=r"there is no history in .*: write some with `perdure runs export"):
        await replay_histories(Orders, tmp_path / "nothing")
    whole = json.loads((histories / "whole.json").read_text())
    assert whole["format"] == "perdure.history/1"
    broken = histories / "broken.json"
    for said, why in [
        ("{", "is not JSON"),
        ("[]", "field 'format' is None"),
        (json.dumps({**whole, "format": "perdure.history/9"}), "field 'format' is 'perdure.history/9'"),
        (json.dumps({**whole, "rows": [{}]}), "no whole history .*'seq'"),
    ]:
        broken.write_text(said)
        with pytest.raises(ValueError, match=why) as failed:
            await replay_histories(Orders, histories)
        assert "broken.json" in str(failed.value)


async def test_a_history_of_everything_that_workflows_do_replays_from_pages(settings, nc, pool, tmp_path, monkeypatch):
    """Also one that was lost after each row; what comes by pages is what comes at once."""
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Everything)
        process.worker.linger = 0.0
        with losing(process):
            await platform.start_run("everything", {"n": 1}, run_id="all")
            await signal(platform, "all", "go", {"payload": [1, None]})
            run = await until(platform, "all", "completed", "failed", "blocked", timeout=30)
        assert run["status"] == "completed", run["error"]
        at_once = await page(pool, "all")
        monkeypatch.setattr("perdure.engine.history.ROWS", 7)
        folder = tmp_path / "histories"
        said = {"NATS_URL": settings.nats_url, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
        code, out, err = await perdure(tmp_path, "runs", "export", "all", "absent", "-o", str(folder), **said)
        assert (code, out) == (1, "")
        assert "there is no run 'absent'" in err
        file = folder / "all.json"
    said = json.loads(file.read_text())
    assert said["rows"] == at_once["rows"]
    assert len(said["rows"]) == len(run["steps"]) > 25
    (found,) = await Recorder(file).replay(Everything(AgentConfig.from_row({}, agent_name="everything")))
    assert (found.rows, found.end) == (len(said["rows"]), "completed")
