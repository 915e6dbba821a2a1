"""Replies that may be larger than one NATS message: snapshots in parts, history in pages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Final

from config_manager.requests import HIGHEST
from config_manager.table import Record
from perdure.errors import InvalidRequest, TooLarge

LONGEST_SHOWN: Final = 4096  # characters of a value that history shows
PAGE_BYTES: Final = 400_000  # of one page of history


def part_of(encoded: bytes, part: int | None, *, revision: int, limit: int) -> dict[str, Any] | None:
    """A part of a snapshot that does not fit into one message, None for one that does.

    `chunk` is the base64 of a slice of the reply's JSON; parts of one `revision` belong together.
    Raises `TooLarge` when the caller asked for no part, `InvalidRequest` when there is no such part.
    """
    if len(encoded) <= limit and part is None:
        return None
    size = max(limit // 2, 256)
    parts = max(-(-len(encoded) // size), 1)
    if part is None:
        raise TooLarge(
            f"this configuration has {len(encoded)} bytes, and one NATS message carries {limit}: "
            f'ask for its parts, {{"part": 0}} to {{"part": {parts - 1}}}',
            parts=parts,
        )
    if part >= parts:
        raise InvalidRequest(f"part {part} does not exist: there are {parts}, from 0")
    chunk = b64encode(encoded[part * size : (part + 1) * size]).decode()
    return {"status": "success", "revision": revision, "part": part, "parts": parts, "chunk": chunk}


def page_of(rows: Iterable[Record], limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of one page of history, the newest first, and the cursor of the next page."""
    entries: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        entry = _entry(row)
        size += sum(len(value.encode()) for value in entry.values() if isinstance(value, str)) + 200
        if len(entries) == limit or (entries and size > PAGE_BYTES):
            last = entries[-1]
            return entries, f"{last['revision']}:{last['agent_name']}:{last['config_key']}"
        entries.append(entry)
    return entries, None


def cursor_of(text: str | None) -> tuple[int, str, str]:
    """What the page after `text` begins below; with None, the newest."""
    if text is None:
        return HIGHEST, "", ""
    number, _, rest = text.partition(":")
    agent, colon, key = rest.partition(":")
    if not number.isdecimal() or int(number) > HIGHEST or not colon:
        raise InvalidRequest("cursor is not one of ours: pass on the next_cursor of a reply, or leave it out")
    return int(number), agent, key


def _entry(row: Record) -> dict[str, Any]:
    entry = {**dict(row.items()), "changed_at": row["changed_at"].isoformat()}
    cut = [name for name in ("old_value", "new_value") if entry[name] is not None and len(entry[name]) > LONGEST_SHOWN]
    for name in cut:
        entry[name] = entry[name][:LONGEST_SHOWN]
    return {**entry, "cut": cut} if cut else entry
