"""Which tool call `perdure runs approve` is about: what the run itself has asked for."""

from __future__ import annotations

from perdure.client import RunHandle
from perdure.errors import InvalidRequest, NotFound

REQUESTED = "approval.requested"


async def approval_of(handle: RunHandle, call_id: str | None, arguments_hash: str | None) -> tuple[str, str]:
    """(call id, hash of its arguments). Both may be given; what is not is read from the run's journal.

    Raises `NotFound` when the run has asked for no such approval, `InvalidRequest` when it asked for several and none
    was named.
    """
    if call_id is not None and arguments_hash is not None:
        return call_id, arguments_hash
    asked: dict[str, str] = {}
    for step in (await handle.details())["steps"]:
        said = step["result"] if step["kind"] == "event" else None
        if isinstance(said, dict) and said.get("type") == REQUESTED and isinstance(said.get("data"), dict):
            data = said["data"]
            asked[str(data.get("call_id"))] = str(data.get("arguments_hash"))
    if call_id is None:
        if len(asked) > 1:
            raise InvalidRequest(
                f"run {handle.run_id} has asked for {len(asked)} approvals; name one: {', '.join(asked)}"
            )
        call_id = next(iter(asked), None)
    if call_id is None or call_id not in asked:
        what = "no approval" if call_id is None else f"no approval of call {call_id!r}"
        raise NotFound(
            f"run {handle.run_id} has asked for {what}; `perdure runs show {handle.run_id}` shows what it does"
        )
    return call_id, arguments_hash or asked[call_id]
