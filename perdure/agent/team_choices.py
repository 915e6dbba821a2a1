"""What a team's model decides: who speaks next, who does what, and whether it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from perdure.agent.structured import Structured
from perdure.engine import Context, Retry
from perdure.errors import RetryableError
from perdure.llm.types import ModelRequest

if TYPE_CHECKING:
    from perdure.agent.team import Team

T = TypeVar("T", bound=BaseModel)
DONE: Final = "done"
_RETRY: Final = Retry(max_attempts=4, delay=0.2, max_delay=10.0)


class Next(BaseModel):
    """Who speaks next: a member, or `done`."""

    next: str


class Part(BaseModel):
    """A piece of work for one member."""

    member: str
    task: str


class Plan(BaseModel):
    """Who does what, in order."""

    parts: list[Part] = Field(min_length=1, max_length=50)


class Verdict(BaseModel):
    """How far the work is: `output` when it is done, other `parts` when the rest of the plan has to change."""

    done: bool
    output: str = ""
    parts: list[Part] = Field(default_factory=list, max_length=50)


async def _decide(
    team: Team, ctx: Context, name: str, system: str, asked: str, form: type[T], members: Sequence[str]
) -> T:
    """A decision of the model, in the form asked for, as a journaled step; nonsense is asked again."""
    adapter = TypeAdapter(form)
    structured = Structured(adapter)
    live = team.live(ctx.config)

    async def decide(asked: str) -> dict[str, Any]:
        schema_name, schema = structured.schema
        _name_members(schema, members)
        request = ModelRequest(
            [{"role": "system", "content": system}, {"role": "user", "content": asked}], schema=(schema_name, schema)
        )
        reply = await team.model.ask(live, team.resources, request)
        problem, value = structured.read(reply.text)
        if problem is None and (unknown := _unknown(value, members)):
            problem = f"there is no member {unknown!r}"
        if problem is not None:
            raise RetryableError(f"the model's decision is unusable: {problem}")
        found: dict[str, Any] = value
        return found

    try:
        return adapter.validate_python(await ctx.step(name, decide, asked, retry=_RETRY))
    except ValidationError as error:  # pragma: no cover -- the step has validated it
        raise RetryableError(str(error)) from error


def _name_members(schema: dict[str, Any], members: Sequence[str]) -> None:
    """Tell the model which names there are, in the schema itself."""
    for where in (schema, *(schema.get("$defs") or {}).values()):
        properties = where.get("properties") or {}
        if "member" in properties:
            properties["member"] = {"type": "string", "enum": list(members)}
        if "next" in properties:
            properties["next"] = {"type": "string", "enum": [*members, DONE]}


def _unknown(value: dict[str, Any], members: Sequence[str]) -> str | None:
    names = [part["member"] for part in value.get("parts") or []]
    names += [value["next"]] if "next" in value and value["next"] != DONE else []
    return next((name for name in names if name not in members), None)


def _roster(team: Team, members: Sequence[str]) -> str:
    return "\n".join(f"- {name}: {team.about.get(name) or 'a member of the team'}" for name in members)


def _so_far(transcript: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"{one['agent']}: {one['content']}" for one in transcript)[-20_000:] or "(nobody has spoken yet)"


async def choose_next(
    team: Team, ctx: Context, prompt: str, transcript: Sequence[dict[str, str]], there: Sequence[str]
) -> str | None:
    """The member that speaks next, or None when it is done. Nobody has spoken: somebody has to."""
    system = (
        f"You lead a team. Choose who speaks next, or {DONE} when the task is done.\nThe team:\n{_roster(team, there)}"
    )
    asked = f"The task: {prompt}\n\nSo far:\n{_so_far(transcript)}\n\nWho is next?"
    chosen = (await _decide(team, ctx, "choose", system, asked, Next, there)).next
    if chosen == DONE:
        return None if transcript else there[0]
    return chosen


async def make_plan(team: Team, ctx: Context, prompt: str) -> Plan:
    """Who does what."""
    system = f"You lead a team. Plan the work: who does what, in order.\nThe team:\n{_roster(team, team.members)}"
    return await _decide(team, ctx, "plan", system, f"The task: {prompt}", Plan, team.members)


async def judge(
    team: Team, ctx: Context, prompt: str, transcript: Sequence[dict[str, str]], rest: Sequence[Part]
) -> Verdict:
    """Whether the work is done, and how to go on when it is not."""
    system = (
        "You lead a team and check its progress. Say done with the final output when the task is fulfilled; give new "
        f"parts only when the rest of the plan has to change.\nThe team:\n{_roster(team, team.members)}"
    )
    plan = "\n".join(f"- {part.member}: {part.task}" for part in rest) or "(nothing)"
    asked = f"The task: {prompt}\n\nSo far:\n{_so_far(transcript)}\n\nStill planned:\n{plan}"
    return await _decide(team, ctx, "check", system, asked, Verdict, team.members)
