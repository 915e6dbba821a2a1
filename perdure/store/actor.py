"""Who asks for what is being done: set where a request comes in, written into the audit log with each act."""

from __future__ import annotations

from contextvars import ContextVar

actor: ContextVar[str] = ContextVar("perdure_actor", default="")
