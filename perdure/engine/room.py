"""How much of a run one NATS message carries."""

from __future__ import annotations

from typing import Any, Final

from perdure.engine.codec import decode

STEP_BYTES: Final = 700  # of a step in a reply, beside its result and error
MARGIN: Final = 8192  # of a message, for what is not counted
ESCAPES: Final = 1.05  # a reply may write a value a little longer than it is stored


class TooBig(int):
    """Stands for a value that was not read, for it has no place in a reply: its size in bytes."""


class Room:
    """The bytes that are left in a reply; without a number there is always room."""

    def __init__(self, left: int | None = None) -> None:
        self._left = left

    def has(self, more: int, *texts: str | TooBig | None) -> bool:
        """Whether `texts` and `more` bytes fit."""
        return self._left is None or more + sum(map(_size, texts)) <= self._left

    def take(self, size: int) -> None:
        """`size` bytes are used."""
        if self._left is not None:
            self._left -= size

    def fill(self, reply: dict[str, Any], name: str, text: str | TooBig | None) -> None:
        """Put the value of `text` into `reply`; if it does not fit, its size into `large`."""
        if isinstance(text, TooBig):
            reply.setdefault("large", {})[name] = int(text)
        elif text is None or self.has(0, text):
            self.take(_size(text))
            reply[name] = decode(text)
        else:
            reply.setdefault("large", {})[name] = len(text.encode())


def _size(text: str | TooBig | None) -> int:
    return 0 if text is None or isinstance(text, TooBig) else int(len(text.encode()) * ESCAPES)
