"""A research team: one agent plans the questions, others look for answers at the same time, one writes the report.

Run it with `perdure agent agents/research_team.py` and ask `perdure run research-team "the history of tea"`.
Kill the process while the researchers work: those that have answered are not asked again.
"""

from __future__ import annotations

from typing import Any

from perdure import BaseAgent, Context, DurableAgent, run_agent, workflow
from perdure.agent.companions import Companions

QUESTIONS = 3

planner = DurableAgent(
    name="research-planner",
    role="a research lead",
    goal=f"Break a topic into {QUESTIONS} questions.",
    instructions=[f"Answer with {QUESTIONS} questions, one a line, and nothing else."],
)
researcher = DurableAgent(
    name="researcher",
    role="a researcher",
    goal="Answer one question, with what is known and what is not.",
)
writer = DurableAgent(
    name="research-writer",
    role="a writer of reports",
    goal="Write a short report from notes.",
)


def questions_in(plan: str, topic: str) -> list[str]:
    """The lines of a plan, as many as there are to be; a plan that has too few is filled up."""
    lines = [line.strip(" -*0123456789.") for line in plan.splitlines()]
    found = [line for line in lines if line][:QUESTIONS]
    return found + [f"What else matters about {topic}? ({at})" for at in range(len(found), QUESTIONS)]


class ResearchTeam(BaseAgent):
    """Plan, research in parallel, report: three kinds of child runs, all of them durable."""

    name = "research-team"

    @workflow
    async def run(self, ctx: Context, task: Any) -> dict[str, Any]:
        """The report on a topic."""
        topic = task if isinstance(task, str) else str(task["task"])
        plan = await ctx.call(planner.name, f"The topic: {topic}")
        questions = questions_in(plan, topic)
        notes = await ctx.gather(*(ctx.call(researcher.name, question) for question in questions))
        text = "\n\n".join(f"{question}\n{note}" for question, note in zip(questions, notes, strict=True))
        report = await ctx.call(writer.name, f"Write a report on {topic} from these notes:\n\n{text}")
        return {"report": report, "questions": questions}

    async def on_start(self) -> None:
        """The three run in this process too; more replicas of each may run elsewhere."""
        self._staff = Companions([planner, researcher, writer])
        await self._staff.start(self.resources)

    async def on_stop(self) -> None:
        """Drain them."""
        await self._staff.stop()


agent = ResearchTeam  # the one that `perdure agent` runs; the others come along

if __name__ == "__main__":
    run_agent(agent)
