"""A step whose outcome is committed with SQL that follows from it: a model's answer, and the turn that it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from perdure.engine.codec import identity
from perdure.engine.rows import JournalRow
from perdure.engine.steps import TransactionCall
from perdure.store.postgres import Connection, PooledConnection, keeps_session

if TYPE_CHECKING:
    from perdure.engine.context import Context
    from perdure.engine.retry import Retry

T = TypeVar("T")

Also: TypeAlias = Callable[[Connection], Awaitable[None]]
"""SQL that is committed with a step's row. It is repeated, alone, when the connection is lost on the way."""


class CommittedStep(TransactionCall):
    """A step that runs outside of any transaction, and whose row may be written in one."""

    kind = "step"
    __slots__ = ("_follows",)

    def __init__(self, follows: Callable[[Any], Also | None], *given: Any) -> None:
        super().__init__(*given)
        self._follows = follows

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        started = self.execution.host.clock.now()
        value = await super(TransactionCall, self)._run(kwargs)  # as any step's
        also = self._follows(value)
        if also is None:
            return value
        text = self._text(value)

        async def work(connection: PooledConnection) -> str:
            await also(cast("Connection", connection))
            return text

        return await self._commit(work, keeps_session(also), started)

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:
        if isinstance(value, JournalRow):
            super()._succeeded(value, attempt, started)
        else:
            super(TransactionCall, self)._succeeded(value, attempt, started)


def committed_step(
    ctx: Context,
    name: str,
    fn: Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
    follows: Callable[[T], Also | None],
    retry: Retry | None = None,
    timeout: float | None = None,
) -> Awaitable[T]:
    """`ctx.step` whose outcome commits together with the SQL that `follows` gives for it, or, for None, as any other.

    `follows` is called with what `fn` returned, in the process that ran it, and never on replay.
    The journal holds it as a step, so that the two are the same to a replay. Where one commit does the work of two, a
    process that dies in between leaves nothing half done.
    """
    execution = ctx._execution  # noqa: SLF001 -- the engine's own
    digest = identity(name, args, {})
    return CommittedStep(follows, execution, execution.line(), name, digest, fn, args, {}, retry, timeout)
