"""Every configuration key of a `DurableAgent`: those of the contract, and those for models, budgets and sessions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from perdure.agent.memory import REMEMBER
from perdure.config.keys import DurableAgentSettings, Names, QueueSettings, RetentionSettings
from perdure.config.secrets import SecretReference


class ProviderEntry(BaseModel):
    """One endpoint of `llm_providers`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    api_key: SecretReference | None = None
    model: str | None = None
    api: Literal["chat", "responses"] | None = None


def _object(value: Any) -> Any:
    """A JSON object given as text, as configuration rows hold it."""
    import orjson  # noqa: PLC0415  (only for the rare text)

    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is no JSON object: {error}") from None


class AgentSettings(DurableAgentSettings, QueueSettings, RetentionSettings):
    """What is unset leaves the agent's own value, or none, standing."""

    llm_api: Literal["chat", "responses"] | None = Field(None, description="Which OpenAI protocol the endpoint speaks.")
    llm_timeout_seconds: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="The longest silence of a model."
    )
    llm_providers: Annotated[dict[str, ProviderEntry] | None, BeforeValidator(_object)] = Field(
        None, description='Endpoints by name: {"name": {"base_url", "api_key", "model", "api"}}.'
    )
    llm_fallbacks: Names | None = Field(
        None, description="Whom to ask next, in order: provider or provider/model, a JSON list or a,b,c."
    )
    llm_price_input: float | None = Field(None, ge=0, allow_inf_nan=False, description="Cost of 1,000,000 tokens read.")
    llm_price_output: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Cost of 1,000,000 tokens written."
    )
    budget_run_tokens: int | None = Field(None, ge=1, description="Tokens of one run, at most.")
    budget_run_cost: float | None = Field(None, gt=0, allow_inf_nan=False, description="Cost of one run, at most.")
    budget_run_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds from a run's first model call to its last, at most."
    )
    budget_session_tokens: int | None = Field(None, ge=1, description="Tokens of one conversation, at most.")
    budget_session_cost: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Cost of one conversation, at most."
    )
    approval_timeout_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="How long a tool call waits for a person."
    )
    approval_on_timeout: Literal["deny", "approve"] | None = Field(
        None, description="What a call is when nobody has decided in time."
    )
    session_ttl_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Conversations idle for longer are forgotten."
    )
    session_summarize_after: int | None = Field(
        None, ge=4, le=100_000, description="Messages of a conversation from which on old ones are summarised."
    )
    mcp_tools: Names | None = Field(
        None, description="The tools that MCP clients may call by themselves: a JSON list, or a,b,c; all when unset."
    )
    memory_enabled: bool | None = Field(None, description="Whether the agent remembers across conversations.")
    memory_scope: Literal["user", "session", "agent"] | None = Field(
        None, description="Whose memories are shared: the task's user (usual), the conversation, or the whole agent."
    )
    memory_recall: int | None = Field(None, ge=1, le=50, description="Memories shown with each turn.")
    llm_embedding_model: str | None = Field(None, min_length=1, max_length=256, description="The model for memories.")


def settings_with_tools(base: type[BaseModel], known: Collection[str]) -> type[BaseModel]:
    """`base`, in which keys that name tools take no others: such a value is held, and `config.applied` says why."""
    if not issubclass(base, DurableAgentSettings):
        return base
    there = f"the tools are {', '.join(sorted(known))}" if known else "the agent has no tools"

    known = {*known, REMEMBER}

    def all_known(names: list[str] | None) -> list[str] | None:
        if unknown := sorted(set(names or ()) - set(known)):
            raise ValueError(f"there is no tool {', '.join(unknown)}; {there}")
        return names

    def choice_known(choice: str | None) -> str | None:
        if choice is not None and choice not in {"auto", "none", "required", *known}:
            raise ValueError(f"must be auto, none, required or a tool; {there}")
        return choice

    fields = base.model_fields
    changed: dict[str, Any] = {
        "tools_enabled": (Annotated[Names | None, AfterValidator(all_known)], fields["tools_enabled"]),
        "requires_approval": (Annotated[Names | None, AfterValidator(all_known)], fields["requires_approval"]),
        "tool_choice": (Annotated[str | None, AfterValidator(choice_known)], fields["tool_choice"]),
    }
    if "mcp_tools" in fields:
        changed["mcp_tools"] = (Annotated[Names | None, AfterValidator(all_known)], fields["mcp_tools"])
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **changed)
