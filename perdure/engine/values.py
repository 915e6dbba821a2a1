"""Replay-safe values that may be awaited or not: `ctx.now()` and `await ctx.now()` are the same."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from datetime import datetime
from typing import Any


class Now(datetime):
    """A moment in UTC."""

    @classmethod
    def of(cls, moment: datetime) -> Now:
        """`moment` as a `Now`."""
        return cls.fromtimestamp(moment.timestamp(), moment.tzinfo)

    def __await__(self) -> Generator[Any, None, datetime]:
        yield from ()
        return self


class Uuid(uuid.UUID):
    """A UUID."""

    def __await__(self) -> Generator[Any, None, uuid.UUID]:
        yield from ()
        return self


class Random(float):
    """A number from 0 up to 1."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, float]:
        yield from ()
        return self
