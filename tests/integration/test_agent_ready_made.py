from __future__ import annotations

import sys

import orjson
import pytest

from perdure.runner.load import load_agent
from tests.integration.agent_support import AGENTS, load, output, program
from tests.platform import in_process
from tests.support import eventually


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)


def test_each_ready_agent_is_a_page_of_code():
    files = sorted(AGENTS.glob("*.py"))
    assert [file.stem for file in files] == ["activation", "assistant", "pipeline", "research_team", "support_desk"]
    assert all(len(file.read_text().splitlines()) < 100 for file in files)
    assert not (AGENTS / "__init__.py").exists(), "another package owns the name `agents`"


@pytest.mark.parametrize("file", sorted(AGENTS.glob("*.py")), ids=lambda file: file.stem)
def test_each_is_found_by_its_file_and_listed_with_what_to_kill(file, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_agent(str(file)).name == file.stem.replace("_", "-"), "as PERDURE_AGENTS and `perdure run` name it"
    assert f"| `{file.stem}` |" in (AGENTS / "README.md").read_text()


async def test_the_pipeline_prices_good_lines_and_reports_bad_ones(settings, nc):
    async with in_process(settings, nc, program("pipeline").Pipeline) as platform:
        said = await output(platform, "pipeline", {"lines": ["3 tea", "x", "1 pot", "many cups"]})
    assert said == {"total": 43.5, "bad": ["x", "many cups"]}


async def test_the_research_team_plans_researches_at_once_and_reports(settings, nc, pool):
    module = program("research_team")
    async with in_process(settings, nc, module.ResearchTeam) as platform:
        reply = await platform.ask("research-team", "the history of tea", timeout=30)
        children = (await platform.request("run.list", {"parent_run_id": reply["run_id"]}))["runs"]
    assert len(reply["output"]["questions"]) == 3
    assert "As a writer of reports" in reply["output"]["report"]
    assert sorted(one["agent"] for one in children) == [
        "research-planner", "research-writer", "researcher", "researcher", "researcher",
    ]  # fmt: skip
    assert module.questions_in("1. What?\n\n- Why?", "tea") == ["What?", "Why?", "What else matters about tea? (2)"]


async def test_the_support_desk_looks_up_refunds_with_a_person_and_hands_over(settings, nc):
    async with in_process(settings, nc, load("support_desk")) as platform:
        said = await output(platform, "support-desk", 'order status "A-17"', session_id="anna")
        assert "a teapot, delivered" in said
        run = await platform.start_run("support-desk", 'refund "A-17" 30', session_id="anna")

        async def asked():
            return (await platform.request("run.approvals", {"run_id": run}))["approvals"]

        [approval] = await eventually(asked)
        assert approval["arguments"] == {"order": "A-17", "amount": 30.0}
        keys = {key: approval[key] for key in ("run_id", "call_id", "arguments_hash")}
        await platform.request("run.approve", {**keys, "decision": "approve"})

        async def done():
            found = await platform.run(run)
            return found.get("output") if found["status"] == "completed" else None

        assert "30.00 euros for A-17 are on their way" in await eventually(done)
        said = await output(platform, "support-desk", "transfer to support engineer", session_id="anna", timeout=30)
        assert "As an engineer who knows teapots" in said


def test_the_number_of_a_line_is_the_customers_own():
    number_of = program("activation").number_of
    assert number_of("Anna") == number_of(" anna ") != number_of("Bob")
    assert orjson.dumps(number_of("Anna"))
