"""The models of one agent's process: fallbacks in order, a breaker for each endpoint, the shared rate limit, costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from perdure.agent.base import Resources
from perdure.agent.counts import AgentCounts
from perdure.agent.endpoints import fallback, primary
from perdure.agent.settings import AgentSettings
from perdure.agent.spans import model_span
from perdure.engine import StepContext
from perdure.errors import PermanentError, RetryableError
from perdure.llm.breaker import Breaker
from perdure.llm.client import ModelClient
from perdure.llm.errors import BusyError, place
from perdure.llm.offline_where import OfflineWhere
from perdure.llm.providers import OFFLINE, ModelChoice, resolve
from perdure.llm.types import Model, ModelReply, ModelRequest, ModelSettings
from perdure.observe.metrics import Reading
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.llm.limiter import RateLimit

_DELTA_SECONDS = 0.02
_SQL = load_queries("sessions.sql")

log = structlog.get_logger()


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
        self._waiting.clear()
        if self._index:
            self._send({"text": "", "reset": True})

    def _send(self, data: dict[str, Any]) -> None:
        self._step.delta("llm.delta", {"piece": self._index, "attempt": self._step.attempt, **data})
        self._index += 1


class AgentModel:
    """Asks models for one agent. `given` is the constructor's: a model's name, a `Model`, or None."""

    def __init__(self, agent_name: str, given: str | Model | None) -> None:
        self.given = given
        self._own = given if isinstance(given, Model) else None  # asked once: of a protocol it is slow
        self.counts = AgentCounts()
        self._agent = agent_name
        self._client = ModelClient()
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._offline: OfflineWhere | None = None
        self._limit: RateLimit | None = None

    async def ask(
        self, settings: AgentSettings, resources: Resources, request: ModelRequest, deltas: Deltas | None = None
    ) -> ModelReply:
        """One answer, of the first endpoint that gives one.

        Raises `PermanentError` or `RetryableError` with a text that says what to do: that of the configured endpoint
        when every fallback failed too, and retryable when any of them was.
        """
        own = self._own
        if own is not None and settings.llm_provider is None and settings.llm_base_url is None:
            with model_span(resources.traces, type(own).__name__, "own") as told:
                reply = self._priced(await own.complete(request, on_delta=deltas), settings)
                told(reply)
            return self._counted(reply)
        failures: list[PermanentError | RetryableError] = []
        for said in (None, *(settings.llm_fallbacks or ())):
            try:
                given = self.given if isinstance(self.given, str) else None
                choice = await (primary(settings, given) if said is None else fallback(settings, said))
                endpoint = await self._endpoint(choice, resources)
                with model_span(resources.traces, endpoint.model, endpoint.provider, endpoint) as told:
                    reply = await self._complete(endpoint, request, deltas)
                    told(reply)
            except (PermanentError, RetryableError) as error:
                failures.append(error)
                if deltas is not None:
                    deltas.reset()
                log.warning("model failed", action="llm.failed", agent=self._agent, fallback=said, error=str(error))
            except asyncio.CancelledError:
                if deltas is not None:
                    deltas.reset()
                raise
            else:
                if deltas is not None:
                    deltas.flush()
                return self._counted(self._priced(reply, settings))
        raise _summary(failures)

    def readings(self) -> Iterator[Reading]:
        """What is counted of models and tools."""
        yield from self.counts.readings(self._agent)
        yield "perdure_model_breakers_open", (self._agent,), sum(each.is_open for each in self._breakers.values())

    async def embed(self, settings: AgentSettings, resources: Resources, texts: list[str]) -> list[list[float]]:
        """One vector for each text. Raises `PermanentError` or `RetryableError`."""
        choice = await primary(settings, None)
        model = settings.llm_embedding_model or ("text-embedding-3-small" if choice.provider != OFFLINE else None)
        return await self._client.embed(await self._endpoint(replace(choice, model=model), resources), texts)

    async def wait_for_slot(self, per_minute: float, resources: Resources) -> float:
        """Seconds until the next call may begin under the shared limit; the slot is taken."""
        if self._limit is None:
            from perdure.llm.limiter import RateLimit  # noqa: PLC0415  (its Redis is there once a process runs)

            async def replicas() -> int:
                return int(await resources.pool.fetchval(_SQL["live_replicas"], self._agent))

            self._limit = RateLimit(resources.redis, self._agent, replicas=replicas)
        return await self._limit.reserve(per_minute)

    async def _endpoint(self, choice: ModelChoice, resources: Resources) -> ModelSettings:
        if self._offline is None:
            self._offline = OfflineWhere(resources.settings.home)
        return await resolve(choice, self._offline.url)

    async def _complete(self, endpoint: ModelSettings, request: ModelRequest, deltas: Deltas | None) -> ModelReply:
        breaker = self._breakers.setdefault((endpoint.base_url, endpoint.model), Breaker())
        breaker.check(place(endpoint))
        try:
            reply = await self._client.complete(endpoint, request, on_delta=deltas)
        except (PermanentError, BusyError) as error:
            breaker.succeeded()
            outcome = "permanent" if isinstance(error, PermanentError) else "busy"
            self.counts.refused(endpoint.provider, endpoint.model, outcome)
            raise
        except RetryableError:
            breaker.failed()
            self.counts.refused(endpoint.provider, endpoint.model, "retryable")
            if endpoint.provider == OFFLINE and self._offline is not None:
                self._offline.forget()  # the platform may have been restarted, with another port
            raise
        except BaseException:
            breaker.gave_up()
            raise
        breaker.succeeded()
        return reply

    def _counted(self, reply: ModelReply) -> ModelReply:
        self.counts.answered(reply)
        return reply

    @staticmethod
    def _priced(reply: ModelReply, settings: AgentSettings) -> ModelReply:
        if reply.cost is not None or (settings.llm_price_input is None and settings.llm_price_output is None):
            return reply
        read, written = settings.llm_price_input or 0.0, settings.llm_price_output or 0.0
        return replace(reply, cost=(reply.input_tokens * read + reply.output_tokens * written) / 1_000_000)

    async def close(self) -> None:
        """Close every connection, and the offline model inside this process if there is one."""
        await self._client.close()
        if self._offline is not None:
            await self._offline.close()


def _summary(failures: Sequence[PermanentError | RetryableError]) -> PermanentError | RetryableError:
    first = failures[0]
    if len(failures) == 1:
        return first
    text = " Then: ".join(str(error) for error in failures)
    retryable = [error for error in failures if isinstance(error, RetryableError)]
    if not retryable:
        return PermanentError(text)
    waits = [error.retry_after for error in retryable if error.retry_after is not None]
    return RetryableError(text, retry_after=min(waits) if len(waits) == len(retryable) else None)
