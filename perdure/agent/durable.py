"""An agent that talks to a model and calls tools; every model call and every tool call outlives the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import asyncpg
import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from perdure import subjects
from perdure.agent.background import background_workflow, workflow_name
from perdure.agent.base import BaseAgent
from perdure.agent.companions import Companions
from perdure.agent.conversations import prune
from perdure.agent.delegation import agent_tool, handoff_tool
from perdure.agent.hooks import HookChain, Hooks
from perdure.agent.memory import Memory
from perdure.agent.model import AgentModel
from perdure.agent.persona import Persona
from perdure.agent.session import Sessions
from perdure.agent.settings import AgentSettings, settings_with_tools
from perdure.agent.single_call import call_workflow, described
from perdure.agent.sources import Toolbox
from perdure.agent.tools import Tool
from perdure.agent.turn import Turn
from perdure.config.snapshot import AgentConfig
from perdure.engine import Context, WorkflowDefinition, define_workflow, workflow
from perdure.engine.committed_step import is_body
from perdure.llm.types import Model
from perdure.messages import CALL_TOOL
from perdure.observe.metrics import Reading

PRUNE_EVERY = 60.0  # seconds between two looks for idle conversations
_OPTIONS = ("role", "goal", "instructions", "system_prompt", "style_guidelines", "tools", "model", "output_type")


class DurableAgent(BaseAgent):
    """An agent made of a persona, a model and tools: `DurableAgent(name="Assistant", role="…", tools=[…])`.

    `instructions` and `style_guidelines` are a text or a list of texts. `tools` are functions, `@tool`s or agents.
    `model` is a model's name (`gpt-5`, `groq/llama-3.3-70b`) or an object with `complete(request)`; None leaves it to
    the configuration and the environment. `output_type` is a type the answer must have (a pydantic model, …). `hooks`
    are asked before and after model and tool calls. `handoffs` are agents that the model may let answer in its place.
    `max_iterations` bounds the model calls of a turn: the last one
    must answer. `history_max_messages` are the messages of a conversation that the model is shown. A subclass may give
    all of these as class attributes.

    A run's task is a text, or `{"task": text}`; its output is the answer, as text or in the `output_type`.
    """

    operation: ClassVar[str] = "invoke_agent"
    Settings: ClassVar[type[BaseModel] | None] = AgentSettings

    def __init__(
        self,
        name: str | AgentConfig | None = None,
        *,
        role: str | None = None,
        goal: str | None = None,
        instructions: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        style_guidelines: str | Sequence[str] | None = None,
        tools: Sequence[Any] | None = None,
        model: str | Model | None = None,
        output_type: Any = None,
        max_iterations: int = 10,
        history_max_messages: int = 200,
        parallel_tools: bool = True,
        stream: bool = True,
        hooks: Sequence[Hooks] = (),
        handoffs: Sequence[BaseAgent | str] = (),
    ) -> None:
        if isinstance(name, str):
            self.name = subjects.agent_name(name)
        config = name if isinstance(name, AgentConfig) else AgentConfig.from_row({}, agent_name=self.name)
        super().__init__(config)
        said = {
            "role": role, "goal": goal, "instructions": instructions, "system_prompt": system_prompt,
            "style_guidelines": style_guidelines, "tools": tools, "model": model, "output_type": output_type,
        }  # fmt: skip
        given = {key: getattr(type(self), key, None) if said[key] is None else said[key] for key in _OPTIONS}
        if max_iterations < 1 or history_max_messages < 1:
            raise ValueError("max_iterations and history_max_messages are at least 1")
        self.persona = Persona.of(
            name if isinstance(name, str) else self.name,
            role=given["role"],
            goal=given["goal"],
            instructions=given["instructions"],
            system_prompt=given["system_prompt"],
            style_guidelines=given["style_guidelines"],
        )
        handed = [handoff_tool(one) for one in handoffs]
        self.toolbox = Toolbox([*(given["tools"] or ()), *handed])
        self._companions = Companions(one.agent for one in self.toolbox.own.values() if one.agent is not None)
        self.model = AgentModel(self.name, given["model"])
        self.output: TypeAdapter[Any] | None = (
            None if given["output_type"] is None else TypeAdapter(given["output_type"])
        )
        self.max_iterations = max_iterations
        self.history_max_messages = history_max_messages
        self.parallel_tools = parallel_tools
        self.stream = stream
        self.sessions = Sessions(self.name)
        self.memory = Memory(self)
        self.hooks = HookChain(hooks)
        self._pruning: asyncio.Task[None] | None = None
        if self.Settings is not None and not self.toolbox.sources:
            # a key that names a tool which this agent does not have is held, like any other bad value
            self.Settings = settings_with_tools(self.Settings, self.toolbox)  # type: ignore[misc]

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        """One turn of a conversation: the answer to `task`."""
        whole = is_body(ctx, DurableAgent.run)  # a subclass may go on after its `super().run(…)`
        return await Turn(self, ctx, task, whole=whole).play()

    def workflows(self) -> Mapping[str, WorkflowDefinition]:
        """`run`, those of a subclass, one for each background tool, and `call-tool` for a tool alone."""
        found = dict(super().workflows())
        for one in self.toolbox.own.values():
            if one.background:
                name = workflow_name(one.name)
                found[name] = define_workflow(background_workflow(self, one), name=name)
        if self.toolbox.own or self.toolbox.sources:
            found[CALL_TOOL] = define_workflow(call_workflow(self), name=CALL_TOOL)
        return found

    def offers(self) -> list[dict[str, Any]]:
        """Its tools as discovery tells of them."""
        return described(self)

    def readings(self) -> Iterable[Reading]:
        """Calls of models and tools."""
        return self.model.readings()

    def live(self, config: AgentConfig) -> AgentSettings:
        """The settings of `config` that every DurableAgent understands; what is bad or unsaid is None."""
        if isinstance(config.settings, AgentSettings):
            return config.settings
        own = AgentConfig.from_row(
            config.values, agent_name=self.name, revision=config.revision, settings_model=AgentSettings
        )
        assert isinstance(own.settings, AgentSettings)  # noqa: S101  (every key has a default)
        return own.settings

    def typed(self, output: Any) -> Any:
        """A run's output in the `output_type`; as it is when an agent that was handed over to answered in another."""
        if self.output is None:
            return output
        try:
            return self.output.validate_json(orjson.dumps(output))
        except ValidationError:
            return output

    def as_tool(self, **options: Any) -> Tool:
        """The agent as a tool of another: each call is a durable child run. `options` are those of `agent_tool`."""
        return agent_tool(self, **options)

    async def on_start(self) -> None:
        """Start the tool sources and the agents that this one calls."""
        for source in self.toolbox.sources:
            await source.start()
        await self._companions.start(self.resources)
        self._pruning = asyncio.create_task(self._prune(), name=f"prune {self.name}")

    async def _prune(self) -> None:
        """Forget conversations that nobody has used for `session_ttl_seconds`."""
        while True:
            idle = self.live(self.config).session_ttl_seconds
            if idle is not None:
                try:
                    if gone := await prune(self.resources.pool, self.name, idle):
                        self.logger.info("forgot idle conversations", action="sessions.pruned", sessions=gone)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                    self.logger.warning("could not prune", action="sessions.not_pruned", error=type(error).__name__)
            await asyncio.sleep(min(PRUNE_EVERY, idle or PRUNE_EVERY))

    async def on_stop(self) -> None:
        """Stop them, and close the connections to the models."""
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
        await self._companions.stop()
        for source in self.toolbox.sources:
            await source.stop()
        await self.model.close()
