"""The least that an engine of this kind must do, in one file: accept, claim, fenced group commit, hashes, events.

No replay, no retries, no waits, no errors: the ceiling that the engine is measured against, on the same servers.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import asyncpg
import nats
import orjson
import uvloop

SCHEMA = """
CREATE TABLE IF NOT EXISTS proto_runs (
  id text PRIMARY KEY, task json, status text, epoch bigint DEFAULT 0, output json);
CREATE TABLE IF NOT EXISTS proto_journal (run_id text, seq bigint, name text, hash text, result json,
  PRIMARY KEY (run_id, seq));
"""
ACCEPT = """INSERT INTO proto_runs (id, task, status)
SELECT i, t::json, 'pending' FROM unnest($1::text[], $2::text[]) AS x (i, t)"""
CLAIM = """UPDATE proto_runs SET status = 'running', epoch = epoch + 1
FROM (SELECT id FROM proto_runs WHERE id = ANY($1::text[]) AND status = 'pending' ORDER BY id FOR NO KEY UPDATE) AS w
WHERE proto_runs.id = w.id RETURNING proto_runs.id, epoch"""
FLUSH = """WITH held AS (
  SELECT r.id FROM proto_runs AS r JOIN unnest($1::text[], $2::bigint[]) AS f (id, epoch) USING (id, epoch)
  ORDER BY r.id FOR NO KEY UPDATE OF r
), written AS (
  INSERT INTO proto_journal SELECT t.* FROM unnest($3::text[], $4::bigint[], $5::text[], $6::text[], $7::json[])
    AS t (run_id, seq, name, hash, result) JOIN held ON held.id = t.run_id ON CONFLICT DO NOTHING
) SELECT id FROM held"""
END = """UPDATE proto_runs SET status = 'completed', output = o::json
FROM unnest($1::text[], $2::text[]) AS x (i, o) WHERE id = i"""


class Group:
    """Commits whatever waits as soon as the last commit is back."""

    def __init__(self, commit: Any) -> None:
        self._commit = commit
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._wake = asyncio.Event()

    def add(self, item: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit([item for item, _ in batch])
                for _, future in batch:
                    future.set_result(None)


async def main() -> None:
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=4, max_size=4, reset=_keep)
    await pool.execute(SCHEMA)
    nc = await nats.connect(os.environ["NATS_URL"])
    epochs: dict[str, int] = {}

    async def accept(batch: list[Any]) -> None:
        await pool.execute(ACCEPT, [run for run, _ in batch], [task for _, task in batch])

    async def claim(batch: list[str]) -> None:
        for record in await pool.fetch(CLAIM, batch):
            epochs[record["id"]] = record["epoch"]

    async def flush(batch: list[Any]) -> None:
        runs = list({row[0] for row in batch})
        await pool.fetch(FLUSH, runs, [epochs[run] for run in runs], *([row[i] for row in batch] for i in range(5)))
        for row in batch:
            await nc.publish(
                f"proto.events.{row[0]}", b'{"seq":%d,"type":"step.completed","result":%s}' % (row[1], row[4].encode())
            )

    async def end(batch: list[Any]) -> None:
        await pool.execute(END, [run for run, _ in batch], [output for _, output in batch])

    groups = [Group(work) for work in (accept, claim, flush, end)]
    tasks = [asyncio.create_task(group.run()) for group in groups]
    accepts, claims, rows, ends = groups

    async def noop(number: int) -> int:
        return number

    async def run(message: Any) -> None:
        body = orjson.loads(message.data)
        run_id = os.urandom(16).hex()
        await accepts.add((run_id, message.data.decode()))
        await claims.add(run_id)
        for number in range(body["task"]["steps"]):
            digest = hashlib.blake2b(orjson.dumps(("noop", [number])), digest_size=12).hexdigest()
            await rows.add((run_id, number, "noop", digest, orjson.dumps(await noop(number)).decode()))
        await ends.add((run_id, str(body["task"]["steps"])))
        del epochs[run_id]
        await message.respond(b'{"status":"completed","run_id":"%s"}' % run_id.encode())

    async def arrived(message: Any) -> None:
        task = asyncio.create_task(run(message))
        tasks.append(task)

    await nc.subscribe("proto.ask", cb=arrived)
    await nc.flush()
    await asyncio.Event().wait()


async def _keep(_connection: Any) -> None:
    """No reset on release."""


if __name__ == "__main__":
    uvloop.run(main())
