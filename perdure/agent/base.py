"""What an author subclasses: an agent, its workflows, its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from pydantic import BaseModel

from perdure import subjects
from perdure.config.messages import ConfigUpdate
from perdure.config.snapshot import AgentConfig
from perdure.engine.definition import WORKFLOW_MARK, WorkflowDefinition, WorkflowMark, define_workflow

if TYPE_CHECKING:
    import redis.asyncio
    from nats.aio.client import Client

    from perdure.observe.metrics import Reading
    from perdure.observe.otel import Traces
    from perdure.settings import Settings as ProcessSettings
    from perdure.store.postgres import Pool


@dataclass(frozen=True, slots=True)
class Resources:
    """The connections of the process that runs an agent, there from `on_start` to the end of `on_stop`."""

    settings: ProcessSettings
    nats: Client
    pool: Pool
    redis: redis.asyncio.Redis
    traces: Traces | None = None


class BaseAgent:
    """An agent: a process of its own that runs the workflows of this class.

    `name` is how it is called (default: the class name in kebab case), `Settings` a pydantic model of the keys it
    understands. `self.config` is the live configuration, `self.logger` a logger bound to the agent. An agent is built
    once, after its configuration was first fetched.
    """

    name: str = ""
    operation: ClassVar[str] = "invoke_workflow"  # what its runs are called in traces
    Settings: ClassVar[type[BaseModel] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = subjects.agent_name(cls.__dict__.get("name") or subjects.kebab_case(cls.__name__))

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.logger = structlog.get_logger(agent=self.name)
        self._resources: Resources | None = None

    @property
    def resources(self) -> Resources:
        """The connections of this process. Raises `RuntimeError` before the agent's process has started."""
        if self._resources is None:
            raise RuntimeError(f"agent {self.name} has no connections yet: its process has not started")
        return self._resources

    def bind(self, resources: Resources, config: AgentConfig) -> None:
        """Called by the process, once, before `on_start`."""
        self._resources = resources
        self.config = config

    def adopt(self, config: AgentConfig) -> None:
        """Called by the process when a new snapshot goes live."""
        self.config = config

    async def on_start(self) -> None:
        """Called before the first run is claimed: open what the steps need."""

    async def on_stop(self) -> None:
        """Called after the last run has left: close what `on_start` opened."""

    async def _handle_config_update(self, msg: ConfigUpdate) -> None:
        """Called after a changed configuration is live, for changes of `*` too, one at a time, never at the start.

        `msg` has `data` (bytes), `agent_name`, `updated_keys`, `timestamp` and `revision`. If this raises, the
        `config.applied` event says so, and the new configuration stays.
        """

    async def _get_agent_configurations(self) -> dict[str, Any]:
        """The live configuration as a dict: declared keys by their type, the others as text."""
        return self.config.typed()

    def typed(self, output: Any) -> Any:
        """A run's output, which travelled as JSON, in the type that the agent declares for it; here it has none."""
        return output

    def readings(self) -> Iterable[Reading]:
        """What the agent counts beside its runs, by the names of `perdure.observe.catalogue`."""
        return ()

    def offers(self) -> list[dict[str, Any]]:
        """Its tools that may be called by themselves: `name`, `description` and `parameters` (JSON Schema) of each."""
        return []

    def workflows(self) -> Mapping[str, WorkflowDefinition]:
        """The workflows of this agent by name: the methods marked with `@workflow`.

        Of several versions of one name the last defined is the one that new runs take (a subclass defines after its
        base); the others are its `older`. Raises `TypeError` when two have the same name and version.
        """
        found: dict[str, WorkflowDefinition] = {}
        for attribute in _in_order_of_definition(type(self)):
            mark = getattr(getattr(type(self), attribute), WORKFLOW_MARK, None)
            if isinstance(mark, WorkflowMark):
                name = mark.name or attribute
                one = define_workflow(getattr(self, attribute), name=name, version=mark.version)
                if before := found.get(name):
                    older = (before, *before.older)
                    if any(each.version == one.version for each in older):
                        said = f"version {one.version!r}" if one.version else "without a version"
                        raise TypeError(f"agent {self.name} has two workflows called {name!r}, {said}")
                    one = replace(one, older=tuple(replace(each, older=()) for each in older))
                found[name] = one
        return found


def _in_order_of_definition(cls: type) -> list[str]:
    """The attributes of a class, each at the place of its last definition."""
    names: dict[str, None] = {}
    for each in reversed(cls.__mro__):
        for name in vars(each):
            names.pop(name, None)
            names[name] = None
    return list(names)
