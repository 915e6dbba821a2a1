"""Which endpoints an agent may ask, in order: the configured one, then the fallbacks."""

from __future__ import annotations

from typing import Literal

from perdure.agent.settings import AgentSettings, ProviderEntry
from perdure.config.secrets import resolve_secret
from perdure.errors import PermanentError, SetupError
from perdure.llm.providers import OFFLINE, PROVIDERS, ModelChoice

TIMEOUT = 120.0


async def _secret(reference: str | None, named_by: str) -> str | None:
    if not reference:
        return None
    try:
        return await resolve_secret(reference)
    except (SetupError, ValueError) as error:
        raise PermanentError(f"{named_by}: {error}") from error


async def primary(settings: AgentSettings, given: str | None) -> ModelChoice:
    """The endpoint that `llm_…` names, with `given` as the model when none is configured.

    Raises `PermanentError` for a secret that is not there.
    """
    name, model = settings.llm_provider, settings.llm_model
    known = settings.llm_providers or {}
    if model is None and given is not None:
        model = given
        prefix, _, rest = given.partition("/")
        if name is None and settings.llm_base_url is None and rest and (prefix in PROVIDERS or prefix in known):
            name, model = prefix, rest
    entry = known.get(name or "", ProviderEntry())
    reference, by = (settings.llm_api_key, "llm_api_key") if settings.llm_api_key else (entry.api_key, "llm_providers")
    base_url, api = settings.llm_base_url or entry.base_url, settings.llm_api or entry.api
    return _choice(settings, name, model or entry.model, base_url, api).with_key(await _secret(reference, by))


async def fallback(settings: AgentSettings, said: str) -> ModelChoice:
    """The endpoint of one entry of `llm_fallbacks`. Raises `PermanentError` for a secret that is not there."""
    known = settings.llm_providers or {}
    name, _, model = said.partition("/")
    if name not in known and name not in PROVIDERS and name != OFFLINE:
        raise PermanentError(
            f"llm_fallbacks: {name!r} is no provider; it is one of {', '.join(sorted({*known, *PROVIDERS, OFFLINE}))}"
        )
    entry = known.get(name, ProviderEntry())
    # what the fallback says of itself counts: `llm_api` may be said of the first endpoint alone
    return _choice(settings, name, model or entry.model, entry.base_url, entry.api or settings.llm_api).with_key(
        await _secret(entry.api_key, f"llm_providers.{name}")
    )


def _choice(
    settings: AgentSettings,
    name: str | None,
    model: str | None,
    base_url: str | None,
    api: Literal["chat", "responses"] | None,
) -> ModelChoice:
    return ModelChoice(
        provider=name,
        model=model,
        base_url=base_url,
        temperature=settings.llm_temperature,
        max_tokens=settings.llm_max_tokens,
        timeout=settings.llm_timeout_seconds or TIMEOUT,
        api=api or "chat",
    )
