"""How failures are written down: a mapping with `type` and `message`, the same live and on replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.errors import ApiError, RunFailed, StepFailed

if TYPE_CHECKING:
    from perdure.engine.calls import Call
    from perdure.engine.rows import JournalRow

_LONGEST = 4000


def describe(error: BaseException) -> dict[str, Any]:
    """`error` as the journal and the wire carry it: never a traceback, never a `repr`."""
    said: dict[str, Any] = {"type": type(error).__name__, "message": clean(_text(error)) or type(error).__name__}
    if isinstance(error, StepFailed):
        said |= {"step": error.name, "attempts": error.attempts, "cause": error.cause}
    elif isinstance(error, RunFailed):
        said |= {"run_id": error.run_id, "status": error.status, "cause": error.error}
    elif isinstance(error, ApiError):
        said["code"] = error.code
    return said


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 -- an author's `__str__` may raise anything, and the failure still counts
        return ""


def too_large(what: str, text: str, limit: int) -> TypeError | None:
    """The refusal of `text` if it has more than `limit` bytes; `what` names it."""
    if len(text) * 4 <= limit or (size := len(text.encode())) <= limit:
        return None
    return TypeError(f"{what} has {size} bytes; the limit is {limit} (PERDURE_MAX_PAYLOAD): pass a reference to it")


def clean(text: str) -> str:
    """`text` as every store can hold it, and not longer than 4,000 characters."""
    text = text.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def mismatch(
    row: JournalRow, call: Call[Any] | None, pending: list[Call[Any]], *, ended: str | None = None
) -> dict[str, Any]:
    """What the journal has, and what the code asked for instead."""
    has = {"seq": row.seq, "path": row.path, "kind": row.kind, "name": row.name, "hash": row.hash}
    if call is not None:
        asked: Any = {"path": call.path, "kind": call.kind, "name": call.name, "hash": call.hash}
        what = "other arguments" if (call.name, call.kind) == (row.name, row.kind) else f"{call.kind} {call.name!r}"
    elif ended is not None:
        asked, what = None, f"nothing more: it ended {ended}"
    else:
        asked = [{"path": c.path, "kind": c.kind, "name": c.name} for c in pending]
        what = ", ".join(f"{c.kind} {c.name!r} at {c.path}" for c in pending) or "nothing"
    return {
        "type": "ReplayMismatch",
        "message": f"at {row.path} the journal has {row.kind} {row.name!r}, and the code asked for {what}. "
        "Put the earlier steps back (or branch on ctx.patched), then resume the run.",
        "journal": has,
        "code": asked,
    }
