"""The requests about conversations: `session.list`, `session.history`, `session.reset`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from perdure.agent import conversations
from perdure.bus.endpoint import Handler
from perdure.bus.service import Request
from perdure.errors import InvalidRequest, NotFound
from perdure.messages import SessionHistory, SessionList, SessionRef, parse
from perdure.store.postgres import Pool


class SessionRequests:
    """One method a request."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by the last word of their subject."""
        return {"list": self.list, "history": self.history, "reset": self.reset}

    async def list(self, request: Request) -> dict[str, Any]:
        """`session.list`: an agent's conversations, and the cursor of the next page."""
        said = parse(SessionList, request.data)
        before = None if said.cursor is None else _place(said.cursor)
        found = await conversations.sessions(self._pool, said.agent, limit=said.limit, before=before)
        last = found[-1] if len(found) == said.limit else None
        cursor = None if last is None else f"{last['updated_at']}/{last['session_id']}"
        return {"status": "success", "agent": said.agent, "sessions": found, "next_cursor": cursor}

    async def history(self, request: Request) -> dict[str, Any]:
        """`session.history`: messages, and `next_after` while there may be more."""
        said = parse(SessionHistory, request.data)
        agent = await self._agent_of(said)
        found = await conversations.history(self._pool, agent, said.session_id, after=said.after, limit=said.limit)
        return {
            "status": "success",
            "agent": agent,
            "session_id": said.session_id,
            "history": found,
            "next_after": found[-1]["seq"] if len(found) == said.limit else None,
        }

    async def reset(self, request: Request) -> dict[str, Any]:
        """`session.reset`: forget every message; `forgotten` is how many. A `conflict` while a turn is open."""
        said = parse(SessionRef, request.data)
        agent = await self._agent_of(said)
        forgotten = await conversations.reset(self._pool, agent, said.session_id)
        return {"status": "success", "agent": agent, "session_id": said.session_id, "forgotten": forgotten}

    async def _agent_of(self, said: SessionRef) -> str:
        if said.agent is not None:
            return said.agent
        agents = await conversations.find(self._pool, said.session_id)
        if not agents:
            raise NotFound(f"there is no session {said.session_id!r}")
        if len(agents) > 1:
            names = ", ".join(sorted(agents))
            raise InvalidRequest(f"field 'agent': session {said.session_id!r} is one of {names}; name the one you mean")
        return agents[0]


def _place(cursor: str) -> tuple[datetime, str]:
    moment, _, session = cursor.partition("/")
    try:
        return datetime.fromisoformat(moment), session
    except ValueError:
        raise InvalidRequest("field 'cursor': give the next_cursor of the page before, unchanged") from None
