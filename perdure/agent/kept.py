"""Where the texts of conversations, approvals and memories stand, for the vault that seals them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.engine.stored import Spots, error_spot, open_columns
from perdure.store.vault import Spot, Unreadable, vault_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.store.vault import Database


def message_spot(agent: str, session: str) -> Spot:
    """A message of a conversation."""
    return Spot("message", f"{agent}/{session}")


def summary_spot(agent: str, session: str) -> Spot:
    """The summary of a conversation's older messages."""
    return Spot("summary", f"{agent}/{session}")


def call_spot(column: str, session: str, call_id: str) -> Spot:
    """What a background call was given (`arguments`), says (`progress`) or gave (`result`)."""
    return Spot(f"call {column}", session, call_id)


def approval_spot(column: str, run_id: str, call_id: str) -> Spot:
    """What a person is asked, and says (`arguments`, `edited`, `reason`, `reason_asked`)."""
    return Spot(f"approval {column}", run_id, call_id)


def memory_spot(agent: str, scope: str) -> Spot:
    """A text that an agent remembers."""
    return Spot("memory", f"{agent}/{scope}")


def result_spots(session: str) -> Spots:
    """The columns of `open_results`."""
    return {
        "arguments": lambda row: call_spot("arguments", session, row["call_id"]),
        "result": lambda row: call_spot("result", session, row["call_id"]),
        "progress": lambda row: call_spot("progress", session, row["call_id"]),
        "run_error": lambda row: error_spot(row["run_id"]),
    }


APPROVAL: Spots = {
    "arguments": lambda row: approval_spot("arguments", row["run_id"], row["call_id"]),
    "edited": lambda row: approval_spot("edited", row["run_id"], row["call_id"]),
    "reason": lambda row: approval_spot("reason", row["run_id"], row["call_id"]),
    "reason_asked": lambda row: approval_spot("reason_asked", row["run_id"], row["call_id"]),
}


async def sealed(database: Database, text: str | None, spot: Spot) -> str | None:
    """`text` as its column holds it. Raises `OSError` when a key service is away."""
    if text is None:
        return None
    vault = vault_of(database)
    await vault.ready([spot])
    return vault.seal(text, spot)


async def unsealed(database: Database, text: str, spot: Spot) -> str:
    """The text of a column. Raises `Unreadable`."""
    vault = vault_of(database)
    await vault.ready(texts=[text])
    return vault.unseal(text, spot)


async def opened(database: Database, records: Sequence[Any], spots: Spots) -> list[Mapping[str, Any]]:
    """`records` with the columns of `spots` opened. Raises `Unreadable`."""
    found = await open_columns(database, records, spots)
    for record in found:
        for column in spots:
            if isinstance(record[column], Unreadable):
                raise record[column]
    return found
