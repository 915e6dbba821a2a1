"""Teams: several agents on one task, as a small durable workflow over `ctx.call`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel

from perdure import subjects
from perdure.agent.base import BaseAgent
from perdure.agent.companions import Companions
from perdure.agent.handoff import CONTEXT
from perdure.agent.model import AgentModel
from perdure.agent.registry import alive
from perdure.agent.settings import AgentSettings
from perdure.agent.team_choices import Plan, Verdict, choose_next, judge, make_plan
from perdure.agent.turn import read_prompt
from perdure.agent.users import user_of, with_user
from perdure.config.snapshot import AgentConfig
from perdure.engine import Context, workflow
from perdure.engine.codec import encode
from perdure.errors import RunFailed
from perdure.llm.types import Model
from perdure.observe.metrics import Reading

Mode: TypeAlias = Literal["round_robin", "random", "select", "plan"]
Said: TypeAlias = dict[str, str]
Stop: TypeAlias = Callable[[Sequence[Said]], bool] | str | None
_CONTEXT_CHARS = 12_000


class Team(BaseAgent):
    """Members take turns on one task: `Team("board", [writer, critic, "remote-agent"], mode="round_robin")`.

    `members` are agents of this program, which then run in its process too, or names of agents that run elsewhere.
    `mode`: `round_robin` in the order given, `random`, `select` (a model chooses who is next, or that it is done),
    `plan` (a model plans who does what, checks the progress after each part, and plans anew when it has to).
    `max_turns` bounds the members' turns. `stop` ends sooner: a text that the last one says, or a function of the
    transcript that depends on nothing else. `model` is that of `select` and `plan`. A member that does not run right
    now is passed over while another one does.

    The output is `{"output": the last word, "transcript": [{"agent", "content"}, …]}`.
    """

    operation: ClassVar[str] = "invoke_agent"
    Settings: ClassVar[type[BaseModel] | None] = AgentSettings

    def __init__(
        self,
        name: str,
        members: Sequence[BaseAgent | str],
        *,
        mode: Mode = "round_robin",
        max_turns: int = 10,
        stop: Stop = None,
        model: str | Model | None = None,
    ) -> None:
        self.name = subjects.agent_name(name)
        super().__init__(AgentConfig.from_row({}, agent_name=self.name))
        if not members:
            raise ValueError(f"team {name!r} needs members")
        if mode not in {"round_robin", "random", "select", "plan"}:
            raise ValueError(f"team {name!r}: mode is round_robin, random, select or plan, not {mode!r}")
        if max_turns < 1:
            raise ValueError(f"team {name!r}: max_turns is at least 1")
        self.members = [subjects.agent_name(one if isinstance(one, str) else one.name) for one in members]
        if len(set(self.members)) != len(self.members) or self.name in self.members:
            raise ValueError(f"team {name!r}: each member once, and not the team itself")
        self.about = {subjects.agent_name(m if isinstance(m, str) else m.name): _about(m) for m in members}
        self.mode = mode
        self.max_turns = max_turns
        self.stop = stop
        self.model = AgentModel(self.name, model)
        self._companions = Companions(one for one in members if isinstance(one, BaseAgent))

    @workflow
    async def run(self, ctx: Context, task: Any) -> dict[str, Any]:
        """The team's work on one task."""
        prompt = read_prompt(task)
        transcript: list[Said] = []
        if self.mode == "plan":
            output = await self._plan(ctx, prompt, transcript)
        else:
            output = await self._talk(ctx, prompt, transcript)
        return {"output": output, "transcript": transcript}

    def readings(self) -> Iterable[Reading]:
        """Calls of the model that chooses."""
        return self.model.readings()

    def live(self, config: AgentConfig) -> AgentSettings:
        """The settings of `config`."""
        return config.settings if isinstance(config.settings, AgentSettings) else AgentSettings()

    # -- one after the other ------------------------------------------------------------------------------------------

    async def _talk(self, ctx: Context, prompt: str, transcript: list[Said]) -> str:
        speaker = -1
        for _ in range(self.max_turns):
            await ctx.adopt_config()
            there = await self._there(ctx)
            if self.mode == "random":
                name = there[int(ctx.random() * len(there))]
            elif self.mode == "select":
                chosen = await choose_next(self, ctx, prompt, transcript, there)
                if chosen is None:
                    break
                name = chosen
            else:
                speaker = next(at % len(self.members) for at in range(speaker + 1, speaker + 1 + len(self.members))
                               if self.members[at % len(self.members)] in there)  # fmt: skip
                name = self.members[speaker]
            await self.speak(ctx, name, prompt, transcript)
            if self._stops(transcript):
                break
        return transcript[-1]["content"] if transcript else ""

    async def _there(self, ctx: Context) -> list[str]:
        """The members that run right now; all of them when none does: they will."""

        async def who_is_there(names: list[str]) -> list[str]:
            return await alive(self.resources.pool, names)

        return await ctx.step("who is there", who_is_there, self.members) or list(self.members)

    async def speak(self, ctx: Context, name: str, prompt: str, transcript: list[Said]) -> None:
        """Let a member take its turn; what it says, or how it failed, goes into the transcript."""
        context = "\n".join(f"{one['agent']}: {one['content']}" for one in transcript)[-_CONTEXT_CHARS:]
        task = with_user({"task": prompt, CONTEXT: context} if context else {"task": prompt}, user_of(ctx))
        try:
            answer = await ctx.call(name, task)
        except RunFailed as error:
            transcript.append({"agent": name, "content": f"(failed: {error.error.get('message', error.status)})"})
            if all(one["content"].startswith("(failed: ") for one in transcript[-len(self.members) :]) and (
                len(transcript) >= len(self.members)
            ):
                raise
            return
        text = answer if isinstance(answer, str) else encode(answer, what=f"the answer of {name}")
        transcript.append({"agent": name, "content": text})

    def _stops(self, transcript: Sequence[Said]) -> bool:
        if self.stop is None:
            return False
        return self.stop in transcript[-1]["content"] if isinstance(self.stop, str) else bool(self.stop(transcript))

    # -- by a plan ----------------------------------------------------------------------------------------------------

    async def _plan(self, ctx: Context, prompt: str, transcript: list[Said]) -> str:
        plan: Plan = await make_plan(self, ctx, prompt)
        parts = list(plan.parts)
        for _ in range(self.max_turns):
            if not parts:
                break
            await ctx.adopt_config()
            part = parts.pop(0)
            await self.speak(ctx, part.member, part.task, transcript)
            verdict: Verdict = await judge(self, ctx, prompt, transcript, parts)
            if verdict.done:
                return verdict.output or transcript[-1]["content"]
            if verdict.parts:
                parts = list(verdict.parts)
            if self._stops(transcript):
                break
        return transcript[-1]["content"] if transcript else ""

    # -- life ---------------------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start the members of this program."""
        await self._companions.start(self.resources)

    async def on_stop(self) -> None:
        """Stop them, and close the connections to the models."""
        await self._companions.stop()
        await self.model.close()


def _about(member: BaseAgent | str) -> str:
    persona = getattr(member, "persona", None)
    return "" if persona is None else ", ".join(part for part in (persona.role, persona.goal) if part)
