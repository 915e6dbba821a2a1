"""Servers of a benchmark's own."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.settings import Settings


def own_settings(home: str) -> Settings:
    """Settings of a platform in `home` alone.

    Servers that the environment names may be somebody's platform: neither this process nor those that it starts measure
    there or write anything.
    """
    for name in ("NATS_URL", "DATABASE_URL", "REDIS_URL"):
        os.environ.pop(name, None)
    return Settings(home=Path(home))
