"""Which model an agent asks: its configuration over its constructor over the environment."""

from __future__ import annotations

import time
from typing import Any

from perdure.agent.base import Resources
from perdure.config.keys import DurableAgentSettings
from perdure.config.secrets import resolve_secret
from perdure.engine import StepContext
from perdure.errors import PermanentError, RetryableError, SetupError
from perdure.llm.client import ModelClient
from perdure.llm.offline_where import OfflineWhere
from perdure.llm.providers import OFFLINE, PROVIDERS, ModelChoice, resolve
from perdure.llm.types import Model, ModelReply, ModelRequest, OnDelta

_DELTA_SECONDS = 0.02


class Deltas:
    """Sends the pieces of an answer as `llm.delta` events, a few together when they come fast."""

    def __init__(self, step: StepContext) -> None:
        self._step = step
        self._waiting: list[str] = []
        self._index = 0
        self._sent_at = 0.0

    def __call__(self, _index: int, text: str) -> None:
        """Take one piece."""
        self._waiting.append(text)
        if time.monotonic() - self._sent_at >= _DELTA_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            self._send({"text": "".join(self._waiting)})
            self._waiting.clear()
            self._sent_at = time.monotonic()

    def reset(self) -> None:
        """The answer broke off: whoever shows its pieces forgets them."""
        if self._index:
            self._waiting.clear()
            self._send({"text": "", "reset": True})

    def _send(self, data: dict[str, Any]) -> None:
        self._step.delta("llm.delta", {"piece": self._index, "attempt": self._step.attempt, **data})
        self._index += 1


class AgentModel:
    """The models of one agent's process. `given` is the constructor's: a name, a `Model`, or None."""

    def __init__(self, given: str | Model | None) -> None:
        self._given = given
        self._client = ModelClient()
        self._offline: OfflineWhere | None = None

    async def ask(
        self,
        settings: DurableAgentSettings,
        resources: Resources,
        request: ModelRequest,
        *,
        on_delta: OnDelta | None = None,
    ) -> ModelReply:
        """One answer. Raises `PermanentError` or `RetryableError`, with a text that says what to do."""
        if isinstance(self._given, Model) and settings.llm_provider is None and settings.llm_base_url is None:
            return await self._given.complete(request, on_delta=on_delta)
        if self._offline is None:
            self._offline = OfflineWhere(resources.settings.home)
        endpoint = await resolve(await self._choice(settings), self._offline.url)
        try:
            return await self._client.complete(endpoint, request, on_delta=on_delta)
        except RetryableError:
            if endpoint.provider == OFFLINE:
                self._offline.forget()  # the platform may have been restarted, with another port
            raise

    async def _choice(self, settings: DurableAgentSettings) -> ModelChoice:
        provider, model = settings.llm_provider, settings.llm_model
        if model is None and isinstance(self._given, str):
            model = self._given
            prefix, _, rest = model.partition("/")
            if provider is None and settings.llm_base_url is None and rest and prefix in PROVIDERS:
                provider, model = prefix, rest
        key = None
        if settings.llm_api_key:
            try:
                key = await resolve_secret(settings.llm_api_key)
            except (SetupError, ValueError) as error:
                raise PermanentError(f"llm_api_key: {error}") from error
        return ModelChoice(
            provider=provider,
            model=model,
            api_key=key,
            base_url=settings.llm_base_url,
            temperature=settings.llm_temperature,
            max_tokens=settings.llm_max_tokens,
        )

    async def close(self) -> None:
        """Close every connection, and the offline model inside this process if there is one."""
        await self._client.close()
        if self._offline is not None:
            await self._offline.close()
