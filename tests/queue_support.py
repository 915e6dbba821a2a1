"""What the tests of queues share."""

from __future__ import annotations

from typing import Any

from perdure.store.postgres import Pool
from tests.platform import InProcess
from tests.support import eventually


async def configure(platform: InProcess, queue: str, **values: Any) -> None:
    """Set, or with None take away, settings of a queue: `concurrency=2` is the key `queue_concurrency`."""
    said = {f"queue_{key}": value for key, value in values.items()}
    await platform.request(f"config.set.{queue}", {"configurations": said})


async def all_ended(pool: Pool, count: int, *, timeout: float = 20.0) -> None:
    """Come back when so many runs have ended, all of them well."""

    async def ended() -> bool:
        assert not await pool.fetch("SELECT * FROM runs WHERE status IN ('failed', 'dead', 'blocked', 'needs_review')")
        return bool(await pool.fetchval("SELECT count(*) >= $1 FROM runs WHERE status = 'completed'", count))

    await eventually(ended, timeout=timeout, message=f"{count} runs end")


async def open_gate(pool: Pool, name: str = "open") -> None:
    """Let the steps go on that wait for a gate."""
    await pool.execute("INSERT INTO gates VALUES ($1) ON CONFLICT DO NOTHING", name)


async def order(pool: Pool) -> list[str]:
    """The runs in the order in which they began."""
    return [row["run_id"] for row in await pool.fetch("SELECT run_id FROM inside ORDER BY at")]


async def running(pool: Pool, count: int, *, queue: str = "line") -> None:
    """Come back when just so many runs of a queue run."""

    async def so_many() -> bool:
        held = "SELECT count(*) = $2 FROM runs WHERE queue_name = $1 AND status = 'running'"
        return bool(await pool.fetchval(held, queue, count))

    await eventually(so_many, message=f"{count} runs of {queue} run")
