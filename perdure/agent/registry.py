"""Which agents are alive, by their leases: a killed process leaves the list when its lease is over, or sooner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("registry.sql")


async def live_agents(pool: Pool) -> list[dict[str, Any]]:
    """Every agent with at least one live process: `agent`, `replicas`, `since`."""
    return [
        {"agent": row["agent_name"], "replicas": row["replicas"], "since": row["since"].isoformat()}
        for row in await pool.fetch(_SQL["live_agents"])
    ]


async def alive(pool: Pool, names: Sequence[str]) -> list[str]:
    """Those of `names` that have a live process, in the order given."""
    found = {row["agent_name"] for row in await pool.fetch(_SQL["alive"], list(names))}
    return [name for name in names if name in found]
