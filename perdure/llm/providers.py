"""Where a model is: configuration over environment over the offline model."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import structlog

from perdure.errors import PermanentError
from perdure.llm.types import ModelSettings

DEFAULT_MODEL: Final = "gpt-5-mini"
OFFLINE: Final = "offline"
NO_KEY: Final = "no-key-needed"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenAI-compatible service: its address, the variable that holds its key, the model when none is named."""

    base_url: str
    key_variable: str | None
    model: str | None = None


PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY", DEFAULT_MODEL),
    "anthropic": Provider("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", "deepseek-chat"),
    "gemini": Provider("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY", "mistral-small-latest"),
    "ollama": Provider("http://127.0.0.1:11434/v1", None),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together": Provider("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "vllm": Provider("http://127.0.0.1:8000/v1", None),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
}


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What configuration says about the model; None is unsaid. `api_key` is the key itself, already resolved."""

    provider: str | None = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 120.0
    api: Literal["chat", "responses"] = "chat"

    def with_key(self, key: str | None) -> ModelChoice:
        """The same choice with its key."""
        return replace(self, api_key=key)


def _checked_url(url: str, named_by: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PermanentError(f"{named_by} is no http(s) address; it looks like https://host/v1")
    return url.rstrip("/")


def _checked_key(key: str, named_by: str) -> str:
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise PermanentError(f"{named_by} holds no usable API key: it is empty, or no header can carry it")
    return key


def unconfigured(choice: ModelChoice, environ: Mapping[str, str]) -> bool:
    """Whether nothing names a model service, so that the offline model answers."""
    if choice.provider == OFFLINE:
        return True
    said = choice.api_key or choice.base_url or environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL")
    return not said and choice.provider in {None, "openai"}


async def resolve(
    choice: ModelChoice,
    offline_url: Callable[[], Awaitable[str]],
    *,
    environ: Mapping[str, str] | None = None,
) -> ModelSettings:
    """The endpoint that `choice` and the environment name; the offline model when they name none.

    Raises `PermanentError` for an unknown provider, a malformed address or key, or a model that nobody named.
    """
    environ = os.environ if environ is None else environ
    common: dict[str, Any] = {
        "temperature": choice.temperature,
        "max_tokens": choice.max_tokens,
        "timeout": choice.timeout,
        "api": choice.api,
    }
    if unconfigured(choice, environ):
        return ModelSettings(choice.model or OFFLINE, await offline_url(), NO_KEY, provider=OFFLINE, **common)
    name = (choice.provider or "openai").lower()
    known = PROVIDERS.get(name)
    if known is None and choice.base_url is None:
        raise PermanentError(
            f"llm_provider {choice.provider!r} is not known; it is one of {', '.join(sorted([*PROVIDERS, OFFLINE]))}, "
            "or any name together with llm_base_url"
        )
    base_url, key = _address(choice, name, known, environ), _key(choice, known, environ)
    model = choice.model or (known.model if known else None)
    if model is None:
        raise PermanentError(f"llm_provider {name!r} has no usual model: set llm_model")
    return ModelSettings(model, base_url, key, provider=name, **common)


def _address(choice: ModelChoice, name: str, known: Provider | None, environ: Mapping[str, str]) -> str:
    if choice.base_url:
        return _checked_url(choice.base_url, "llm_base_url")
    if name == "openai" and environ.get("OPENAI_BASE_URL"):
        return _checked_url(environ["OPENAI_BASE_URL"], "OPENAI_BASE_URL")
    assert known is not None  # noqa: S101  (resolve refuses an unknown provider without an address)
    return known.base_url


def _key(choice: ModelChoice, known: Provider | None, environ: Mapping[str, str]) -> str:
    if choice.api_key:
        return _checked_key(choice.api_key, "llm_api_key")
    variable = known.key_variable if known else None
    if variable and environ.get(variable):
        return _checked_key(environ[variable], variable)
    return NO_KEY  # many local servers need none; one that does answers 401, whose advice names llm_api_key
