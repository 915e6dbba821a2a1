"""The settings that every DurableAgent understands, live. What is unset leaves the agent's own value standing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from perdure.config.secrets import SecretReference


def _list_or_text(value: Any) -> Any:
    """A JSON list, or any other text as a list of one."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    if value.lstrip().startswith("["):
        return _json_list(value)
    return [value]


def _list_or_commas(value: Any) -> Any:
    """A JSON list, or names between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json_list(value)
    return [name.strip() for name in value.split(",") if name.strip()]


def _json_list(value: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"looks like a JSON list, but is none: {error}") from None


# How the schema says "a JSON list, or any text that does not begin like one".
_NoJson = Annotated[str, Field(pattern=r"^(?!\s*\[)")]
Instructions = Annotated[list[str], BeforeValidator(_list_or_text, json_schema_input_type=_NoJson | list[str])]
Names = Annotated[list[str], BeforeValidator(_list_or_commas, json_schema_input_type=_NoJson | list[str])]


class DurableAgentSettings(BaseModel):
    """Every key that a DurableAgent understands; an agent's own `Settings` may extend it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    agent_role: str | None = Field(None, description="What the agent is: `Your role: …` in its system prompt.")
    agent_goal: str | None = Field(None, description="What it is there for.")
    agent_instructions: Instructions | None = Field(None, description="How it works: a JSON list, or one text.")
    agent_system_prompt: str | None = Field(
        None,
        description="How its system prompt opens, in place of `You are NAME.`; role, goal and all else follow.",
    )
    agent_style_guidelines: Instructions | None = Field(None, description="How it writes: a JSON list, or one text.")
    max_iterations: int | None = Field(None, ge=1, le=1000, description="Model calls in one turn, at most.")
    tool_choice: str | None = Field(
        None, min_length=1, max_length=128, description="auto, none, required, or the name of a tool."
    )
    tools_enabled: Names | None = Field(None, description="The tools the model may see: a JSON list, or a,b,c.")
    llm_provider: str | None = Field(None, min_length=1, max_length=64, description="openai, or another provider.")
    llm_model: str | None = Field(None, min_length=1, max_length=256, description="The model's name at its provider.")
    llm_api_key: SecretReference | None = Field(
        None, description="secret://env/NAME or secret://file/PATH; never the key itself."
    )
    llm_base_url: str | None = Field(
        None, pattern=r"^https?://[^\s]+$", max_length=2048, description="Where an OpenAI-compatible API answers."
    )
    llm_temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 to 2.")
    llm_max_tokens: int | None = Field(None, ge=1, le=10_000_000, description="Tokens of one answer, at most.")
    rate_limit: float | None = Field(
        None, gt=0, le=1_000_000, allow_inf_nan=False, description="Model requests a minute, all replicas together."
    )
    tool_timeout_seconds: float | None = Field(
        None, gt=0, le=86_400, allow_inf_nan=False, description="Seconds that one tool call may take."
    )
    retry_max_attempts: int | None = Field(None, ge=1, le=100, description="Attempts of a step, the first one counted.")
    requires_approval: Names | None = Field(None, description="Tools a person must approve: a JSON list, or a,b,c.")
    history_max_messages: int | None = Field(
        None, ge=1, le=100_000, description="Messages of a conversation that the model is shown."
    )
    log_level: Literal["debug", "info", "warning", "error"] | None = Field(
        None, description="debug, info, warning or error."
    )


class RetentionSettings(BaseModel):
    """How long the runs of an agent are kept. A trigger of the table reads it, and the scheduler goes by it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    retention_days: int | None = Field(
        None, ge=0, le=36_500, description="Days that runs are kept after their end; 0 is for ever."
    )


class QueueSettings(BaseModel):
    """The settings of a queue, under its name: an agent's own has the agent's. A trigger of the table reads them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    queue_concurrency: int | None = Field(
        None, ge=0, le=1_000_000, description="Runs that are executed at a time, all processes together; 0 holds all."
    )
    queue_process_concurrency: int | None = Field(
        None, ge=1, le=1_000_000, description="Runs of the queue that one process executes at a time."
    )
    queue_rate_limit: int | None = Field(
        None, ge=1, le=1_000_000, description="Runs that begin within `queue_rate_period_seconds`, at most."
    )
    queue_rate_period_seconds: float | None = Field(
        None, gt=0, le=86_400, allow_inf_nan=False, description="The period of `queue_rate_limit`; 60 unless set."
    )
