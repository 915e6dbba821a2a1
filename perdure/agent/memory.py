"""Long-term memory: short texts that an agent keeps, found again by their meaning. Off unless configured.

Each text belongs to a scope: the user that the task names (usual), the conversation, or the whole agent. What is kept
in one scope is recalled in no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog

from perdure.agent.kept import memory_spot, sealed, unsealed
from perdure.agent.tools import Tool
from perdure.engine import Retry, StepContext
from perdure.errors import PermanentError, StepFailed
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent
    from perdure.agent.settings import AgentSettings
    from perdure.agent.turn import Turn

REMEMBER: Final = "remember"
RECALLED: Final = 5
LONGEST: Final = 2_000
_NEAR_ENOUGH: Final = 0.2
_MISSING: Final = (
    "memory needs the pgvector extension, which this Postgres does not have: install it there, "
    "or set memory_enabled to false"
)

_SQL = load_queries("memory.sql")
log = structlog.get_logger()


def scope_of(live: AgentSettings, user: str | None, session: str) -> str:
    """Whose memories a turn keeps and recalls."""
    if live.memory_scope == "agent":
        return ""
    if live.memory_scope == "session":
        return f"session:{session}"
    return "" if user is None else f"user:{user}"


def _vector(values: list[float]) -> str:
    return f"[{','.join(format(value, '.7g') for value in values)}]"


class Memory:
    """The memory of one agent."""

    def __init__(self, agent: DurableAgent) -> None:
        self._agent = agent
        self._ready = False

    async def _prepare(self, pool: Pool) -> None:
        """Make the table. Raises `PermanentError` with what to do when Postgres has no pgvector."""
        if self._ready:
            return
        if not await pool.fetchval(_SQL["ready"]):
            if not await pool.fetchval(_SQL["available"]):
                raise PermanentError(_MISSING)
            try:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.fetchval(_SQL["lock"])
                    await connection.execute(_SQL["create_extension"])
                    await connection.execute(_SQL["create_table"])
            except asyncpg.InsufficientPrivilegeError as error:
                raise PermanentError(
                    f"memory cannot be set up: {error}. Run CREATE EXTENSION vector as a superuser of this database"
                ) from error
        self._ready = True

    async def keep(self, memory_id: str, run_id: str, text: str, scope: str = "") -> None:
        """Keep a text in `scope`, once for each `memory_id`. Raises `PermanentError` or `RetryableError`."""
        agent = self._agent
        pool = agent.resources.pool
        await self._prepare(pool)
        [vector] = await agent.model.embed(agent.live(agent.config), agent.resources, [text])
        kept = await sealed(pool, text, memory_spot(agent.name, scope))
        await pool.execute(_SQL["keep"], agent.name, memory_id, run_id, kept, _vector(vector), scope)

    async def recall(self, text: str, most: int = RECALLED, scope: str = "") -> list[str]:
        """The texts kept in `scope` that are nearest to `text`. Raises `PermanentError` or `RetryableError`."""
        agent = self._agent
        pool = agent.resources.pool
        await self._prepare(pool)
        [vector] = await agent.model.embed(agent.live(agent.config), agent.resources, [text])
        rows = await pool.fetch(_SQL["recall"], agent.name, _vector(vector), most, scope)
        spot = memory_spot(agent.name, scope)
        return [await unsealed(pool, row["content"], spot) for row in rows if row["nearness"] >= _NEAR_ENOUGH]

    async def forget(self, run_id: str | None = None, *, scope: str | None = None) -> int:
        """Forget what was kept, all of it or that of one run or one scope (`user:anna`); how much it was."""
        pool = self._agent.resources.pool
        if not await pool.fetchval(_SQL["ready"]):
            return 0
        done: str = await pool.execute(_SQL["forget"], self._agent.name, run_id, scope)
        return int(done.rpartition(" ")[2])

    def tool(self, scope: str) -> Tool:
        """The tool by which a model keeps something in `scope`."""

        async def remember(text: str, step: StepContext) -> str:
            """Keep a fact for later conversations.

            :param text: the fact, in one or two sentences
            """
            text = text.strip().replace("\x00", "")[:LONGEST]
            if not text:
                raise PermanentError("there is nothing to remember: the text is empty")
            await self.keep(step.idempotency_key, step.run_id, text, scope)
            return "remembered"

        return Tool(remember, name=REMEMBER)


async def recalled(turn: Turn, live: AgentSettings) -> list[str]:
    """Notes for the system prompt: what the agent remembers of the user's message. A journaled step.

    Raises `PermanentError` when memory is on and cannot work here; a model that gives no embeddings now only costs the
    memories of this turn.
    """
    if not live.memory_enabled or not isinstance(turn.prompt, str):
        return []
    memory, most = turn.agent.memory, live.memory_recall or RECALLED
    scope = scope_of(live, turn.user, turn.session)

    async def recall(text: str, most: int, scope: str) -> list[str]:
        return await memory.recall(text, most, scope)

    try:
        found: list[Any] = await turn.ctx.step(
            "recall", recall, turn.prompt[:LONGEST], most, scope, retry=Retry(max_attempts=2)
        )
    except StepFailed as error:
        if error.cause.get("type") == "PermanentError" and "pgvector" in str(error.cause.get("message")):
            raise PermanentError(str(error.cause["message"])) from error
        log.warning("nothing was recalled", action="memory.failed", agent=turn.agent.name, error=str(error))
        return []
    return [f"Memory: {' '.join(str(text).split())}" for text in found]
