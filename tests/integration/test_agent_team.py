from __future__ import annotations

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.agent.registry import alive, live_agents
from perdure.agent.team import Team
from perdure.errors import RunFailed
from perdure.llm.types import ModelReply
from perdure.testing.models import ScriptedModel
from tests.integration.agent_support import output
from tests.platform import in_process
from tests.support import eventually


class Says:
    """A member that says its word and what it was told before."""

    def __init__(self, word):
        self.word = word
        self.heard = []

    async def complete(self, request, *, on_delta=None):
        self.heard.append(request)
        return ModelReply(f"{self.word}{len(self.heard)}", "answer")


class Decides:
    """A team's model: answers with the next of some JSON documents, over and over."""

    def __init__(self, *documents):
        self.documents = documents
        self.requests = []

    async def complete(self, request, *, on_delta=None):
        self.requests.append(request)
        said = self.documents[min(len(self.requests), len(self.documents)) - 1]
        return ModelReply(said if isinstance(said, str) else orjson.dumps(said).decode(), "answer")


def members(*names):
    return [DurableAgent(name, role=f"the {name}", model=Says(name)) for name in names]


def speakers(said):
    return [one["agent"] for one in said["transcript"]]


async def test_members_take_turns_in_order_and_know_what_was_said(settings, nc):
    a, b = members("a", "b")
    async with in_process(settings, nc, Team("board", [a, b], max_turns=3)) as platform:
        said = await output(platform, "board", "talk")
    assert said == {
        "output": "a2",
        "transcript": [
            {"agent": "a", "content": "a1"},
            {"agent": "b", "content": "b1"},
            {"agent": "a", "content": "a2"},
        ],
    }
    assert "a: a1" in b.model.given.heard[0].messages[0]["content"]


async def test_a_team_stops_at_a_word_or_when_a_function_says_so(settings, nc):
    async with in_process(settings, nc, Team("board", members("a", "b"), stop="b1")) as platform:
        assert speakers(await output(platform, "board", "talk")) == ["a", "b"]
    team = Team("board", members("a", "b"), stop=lambda transcript: len(transcript) == 3)
    async with in_process(settings, nc, team) as platform:
        assert speakers(await output(platform, "board", "talk")) == ["a", "b", "a"]


async def test_a_random_speaker_is_the_same_on_replay(settings, nc):
    async with in_process(settings, nc, Team("board", members("a", "b", "c"), mode="random", max_turns=6)) as platform:
        reply = await platform.ask("board", "talk")
        steps = (await platform.run(reply["run_id"]))["steps"]
    called = [one["name"] for one in steps if one["kind"] == "call" and one["status"] == "completed"]
    assert called == speakers(reply["output"])
    assert set(called) <= {"a", "b", "c"}


async def test_a_model_chooses_who_is_next_and_when_it_is_done(settings, nc):
    model = Decides({"next": "b"}, {"next": "nobody"}, "nonsense", {"next": "a"}, {"next": "done"})
    async with in_process(settings, nc, Team("board", members("a", "b"), mode="select", model=model)) as platform:
        said = await output(platform, "board", "talk")
    assert speakers(said) == ["b", "a"]
    assert model.requests[0].schema[1]["properties"]["next"]["enum"] == ["a", "b", "done"]
    assert "the a" in model.requests[0].messages[0]["content"]


async def test_a_plan_is_carried_out_checked_and_changed(settings, nc):
    model = Decides(
        {"parts": [{"member": "a", "task": "first"}, {"member": "b", "task": "second"}]},
        {"done": False},
        {"done": False, "parts": [{"member": "a", "task": "third"}]},
        {"done": True, "output": "all of it"},
    )
    a, b = members("a", "b")
    async with in_process(settings, nc, Team("board", [a, b], mode="plan", model=model)) as platform:
        said = await output(platform, "board", "work")
    assert said["output"] == "all of it"
    assert speakers(said) == ["a", "b", "a"]
    assert [one.messages[-1]["content"] for one in a.model.given.heard] == ["first", "third"]


async def test_the_offline_model_can_lead_a_team(settings, nc, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)
    async with in_process(settings, nc, Team("board", members("a", "b"), mode="plan", max_turns=2)) as platform:
        assert speakers(await output(platform, "board", "let a write"))


async def test_a_member_that_fails_is_in_the_transcript_and_all_failing_fails_the_team(settings, nc):
    bad = DurableAgent("bad", model=ScriptedModel())
    [good] = members("good")
    async with in_process(settings, nc, Team("board", [bad, good], max_turns=2)) as platform:
        said = await output(platform, "board", "talk")
    assert said["transcript"][0]["content"].startswith("(failed: ")
    assert said["output"] == "good1"
    worse = DurableAgent("worse", model=ScriptedModel())
    bad = DurableAgent("bad", model=ScriptedModel())
    async with in_process(settings, nc, Team("board", [bad, worse])) as platform:
        with pytest.raises(RunFailed):
            await platform.ask("board", "talk")


async def test_a_remote_member_that_is_not_there_is_passed_over_and_taken_in_when_it_comes(settings, nc, pool):
    [a] = members("a")
    async with in_process(settings, nc, Team("board", [a, "far"], max_turns=2)) as platform:
        assert speakers(await output(platform, "board", "talk")) == ["a", "a"]
        [far] = members("far")
        process = await platform.agent(far)
        assert speakers(await output(platform, "board", "talk")) == ["a", "far"]
        assert {one["agent"] for one in await live_agents(pool)} == {"a", "board", "far"}
        await process.stop()
        platform.services.remove(process)

        async def gone():
            return await alive(pool, ["far", "a"]) == ["a"]

        await eventually(gone)


@pytest.mark.parametrize(
    "given", [{"members": []}, {"mode": "chaos"}, {"max_turns": 0}, {"members": ["a", "a"]}, {"members": ["board"]}]
)
def test_a_team_that_makes_no_sense_is_refused(given):
    with pytest.raises(ValueError, match="team 'board'"):
        Team("board", **{"members": ["a"], **given})
