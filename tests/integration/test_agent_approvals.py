from __future__ import annotations

import asyncio
import os
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.hooks import Hooks, Verdict
from perdure.agent.tools import tool
from perdure.errors import Conflict, InvalidRequest, NotFound
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, output
from tests.platform import in_process
from tests.support import eventually


def last_result(request):
    return [one["content"] for one in request.messages if one["role"] == "tool"][-1]


class Refunds:
    """An agent whose one tool needs a person, and what the tool did."""

    def __init__(self, **options):
        self.paid = []

        @tool(requires_approval=True)
        async def refund(customer: str, amount: int) -> str:
            """Refund."""
            self.paid.append((customer, amount))
            return f"{amount} paid to {customer}"

        call = Call("refund", {"customer": "Anna", "amount": 30})
        self.agent = DurableAgent("desk", model=ScriptedModel(call, last_result), tools=[refund], **options)


async def waiting(platform, run_id=None):
    found = await platform.request("run.approvals", {} if run_id is None else {"run_id": run_id})
    return found["approvals"]


async def ended(platform, run):
    found = await platform.run(run)
    return found if found["status"] in {"completed", "failed", "cancelled"} else None


async def asked(platform):
    run = await platform.start_run("desk", "refund Anna")
    [approval] = await eventually(lambda: waiting(platform, run))
    return run, approval


def decision(approval, kind, **more):
    said = {key: approval[key] for key in ("run_id", "call_id", "arguments_hash")}
    return {**said, "decision": kind, **more}


async def test_a_call_waits_for_a_person_and_is_made_once_it_is_approved(settings, nc, pool):
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        run, approval = await asked(platform)
        assert approval["tool"] == "refund"
        assert approval["arguments"] == {"customer": "Anna", "amount": 30}
        assert desk.paid == []
        reply = await platform.request("run.approve", decision(approval, "approve", decided_by="Eve", reason="fine"))
        assert reply["status"] == "approved"
        assert (await eventually(lambda: ended(platform, run)))["output"] == "30 paid to Anna"
        with pytest.raises(Conflict, match="approved already"):
            await platform.request("run.approve", decision(approval, "deny"))
        assert await waiting(platform) == []
        [kept] = (await platform.request("run.approvals", {"status": "any"}))["approvals"]
    assert (kept["status"], kept["decided_by"], kept["reason"]) == ("approved", "Eve", "fine")
    assert kept["decided_at"] is not None
    assert desk.paid == [("Anna", 30)]


async def test_a_decision_from_the_command_line_is_kept_with_who_took_it(settings, nc):
    async with in_process(settings, nc, Refunds().agent) as platform:
        surroundings = {**os.environ, "NATS_URL": settings.nats_url, "COLUMNS": "200", "NO_COLOR": "1"}

        async def approve(run, *how):
            command = [sys.executable, "-m", "perdure.cli.main", "runs", "approve", run, *how]
            process = await create_subprocess_exec(*command, env=surroundings, stderr=PIPE)
            said = (await process.communicate())[1].decode()
            return process.returncode, said

        run, approval = await asked(platform)
        code, said = await approve(run, "--edit", '{"customer": "Anna", "amount": 20}', "--by", "Eve")
        assert (code, said) == (0, f"approved with other arguments: call {approval['call_id']} of run {run}\n")
        assert "20 paid to Anna" in (await eventually(lambda: ended(platform, run)))["output"]
        code, said = await approve(run, "--deny")
        assert code == 1
        assert "edited already" in said
        [kept] = (await platform.request("run.approvals", {"status": "any"}))["approvals"]
    assert (kept["status"], kept["decided_by"]) == ("edited", "Eve")
    assert kept["decided_at"] is not None


async def test_a_denied_call_is_told_to_the_model_with_the_reason(settings, nc):
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        run, approval = await asked(platform)
        await platform.request("run.approve", decision(approval, "deny", reason="too much"))
        said = (await eventually(lambda: ended(platform, run)))["output"]
    assert "a person denied this call: too much" in said
    assert desk.paid == []


async def test_edited_arguments_are_the_ones_that_count_and_the_model_knows(settings, nc):
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        run, approval = await asked(platform)
        with pytest.raises(InvalidRequest, match="arguments"):
            await platform.request("run.approve", decision(approval, "edit"))
        edited = {"customer": "Anna", "amount": 10}
        await platform.request("run.approve", decision(approval, "edit", arguments=edited))
        said = orjson.loads((await eventually(lambda: ended(platform, run)))["output"])
    assert said == {"note": "a person changed the arguments", "arguments": edited, "result": "10 paid to Anna"}
    assert desk.paid == [("Anna", 10)]


async def test_a_decision_holds_only_for_the_arguments_that_it_names(settings, nc):
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        run, approval = await asked(platform)
        with pytest.raises(Conflict, match="arguments_hash"):
            await platform.request("run.approve", decision(approval, "approve") | {"arguments_hash": "0" * 64})
        with pytest.raises(NotFound):
            await platform.request("run.approve", decision(approval, "approve") | {"call_id": "call_other"})
        with pytest.raises(NotFound):
            await platform.request("run.approve", decision(approval, "approve") | {"run_id": "other"})
        assert (await platform.run(run))["status"] in {"waiting", "running"}
        assert desk.paid == []


async def test_two_decisions_at_once_are_one_decision_and_one_conflict(settings, nc):
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        run, approval = await asked(platform)
        replies = await asyncio.gather(
            *(platform.request("run.approve", decision(approval, kind)) for kind in ("approve", "deny") * 4),
            return_exceptions=True,
        )
        done = [one for one in replies if isinstance(one, dict)]
        assert len(done) == 1
        assert all(isinstance(one, (dict, Conflict)) for one in replies)
        said = (await eventually(lambda: ended(platform, run)))["output"]
    assert ("paid" in said) == (done[0]["status"] == "approved") == bool(desk.paid)


@pytest.mark.parametrize("policy", ["deny", "approve"])
async def test_when_nobody_decides_in_time_the_configured_policy_does(settings, nc, pool, policy):
    await configure(pool, "desk", approval_timeout_seconds=0.2, approval_on_timeout=policy)
    desk = Refunds()
    async with in_process(settings, nc, desk.agent) as platform:
        said = await output(platform, "desk", "refund Anna")
        [kept] = (await platform.request("run.approvals", {"status": "any"}))["approvals"]
        with pytest.raises(Conflict):
            await platform.request("run.approve", decision(kept, "approve"))
    assert kept["status"] == "expired"
    assert ("nobody approved" in said) == (policy == "deny") == (desk.paid == [])


async def test_the_configuration_says_live_which_tools_need_a_person(settings, nc, pool):
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    await configure(pool, "bob", requires_approval=["look"])
    async with in_process(
        settings, nc, DurableAgent("bob", model=ScriptedModel(Call("look"), last_result), tools=[look])
    ) as platform:
        run = await platform.start_run("bob", "look")
        [approval] = await eventually(lambda: waiting(platform, run))
        await platform.request("run.approve", decision(approval, "approve"))
        assert (await eventually(lambda: ended(platform, run)))["output"] == "seen"


async def test_a_call_with_arguments_that_cannot_be_made_bothers_nobody(settings, nc):
    desk = Refunds()
    desk.agent.model.given.lines = (Call("refund", {"customer": 1}), Call("refund", "{broken"), last_result)
    async with in_process(settings, nc, desk.agent) as platform:
        assert "InvalidArguments" in await output(platform, "desk", "refund")
        assert (await platform.request("run.approvals", {"status": "any"}))["approvals"] == []


class Rules(Hooks):
    def __init__(self):
        self.calls = []

    async def before_tool(self, at):
        self.calls.append(at.tool)
        arguments = orjson.loads(at.arguments)
        if at.tool == "pay":
            amount = arguments["amount"]
            if amount > 1000:
                return Verdict.deny("never more than 1000")
            if amount > 100:
                return Verdict.ask("more than 100")
            if amount > 50:
                return Verdict.change({"amount": 50}, "at most 50 at once")
            if amount < 0:
                raise ValueError("a bug in the rule")
        return None

    async def after_tool(self, at, result):
        return result.replace("secret", "***")

    async def before_model(self, request, at):
        from dataclasses import replace

        return replace(request, messages=[*request.messages, {"role": "system", "content": "be brief"}])

    async def after_model(self, reply, at):
        from dataclasses import replace

        return replace(reply, text=reply.text.upper())


async def test_hooks_allow_change_deny_and_ask_a_person_and_are_not_asked_again_on_replay(settings, nc, pool):
    paid = []

    @tool
    async def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return f"secret {amount}"

    rules = Rules()
    model = ScriptedModel(
        [Call("pay", {"amount": amount}) for amount in (10, 60, 200, 2000, -1)],
        lambda request: " | ".join(one["content"] for one in request.messages if one["role"] == "tool"),
    )
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[pay], hooks=[rules])) as platform:
        run = await platform.start_run("bob", "pay")
        [approval] = await eventually(lambda: waiting(platform, run))
        assert approval["reason_asked"] == "more than 100"
        await platform.request("run.approve", decision(approval, "approve"))
        said = (await eventually(lambda: ended(platform, run)))["output"].split(" | ")
    assert said[0] == "*** 10"
    assert "AT MOST 50 AT ONCE" in said[1].upper()
    assert said[2] == "*** 200"
    assert "NEVER MORE THAN 1000" in said[3].upper()
    assert "A CHECK OF THIS CALL FAILED" in said[4].upper()
    assert sorted(paid) == [10, 50, 200]
    assert rules.calls == ["pay"] * 5
    assert model.requests[0].messages[-1]["content"] == "be brief"
