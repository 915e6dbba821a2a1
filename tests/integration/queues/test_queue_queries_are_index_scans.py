"""A queue with a long line, among many finished runs: what a claim reads does not grow with either."""

from __future__ import annotations

import orjson
import pytest

from perdure.store.queries import load_queries
from tests.agents.queued import Queued
from tests.platform import in_process

SQL = load_queries("queues.sql")
ENGINE = load_queries("engine.sql")
FILL = """
INSERT INTO runs (run_id, agent_name, task, task_hash, queue_name, priority, fair_key, fair_rank, status, started_at,
                  finished_at, process_id)
SELECT format('%s-%s-%s', $1::text, $2::text, n), 'queued', '{}', '', $2, n % 3, format('k%s', n % 50), n / 50, $1,
       CASE WHEN $1 <> 'pending' THEN now() END, CASE WHEN $1 = 'completed' THEN now() END,
       CASE WHEN $1 = 'running' THEN 'somebody' END
FROM generate_series(1, $3::integer) AS n
"""
STARTS = "INSERT INTO queue_starts SELECT format('q%s', n % 200), now() FROM generate_series(1, 20000) AS n"
READ = """
SELECT pg_stat_get_xact_tuples_returned(oid) + pg_stat_get_xact_tuples_fetched(oid) FROM pg_class WHERE relname = 'runs'
"""


@pytest.fixture
async def full(pool):
    for status, queue in (("completed", "line"), ("completed", None), ("pending", "line")):
        await pool.execute(FILL, status, queue, 20_000)
    await pool.execute(FILL, "running", "line", 50)
    await pool.execute("INSERT INTO queues (queue_name, concurrency) VALUES ('line', 1000)")
    await pool.execute("INSERT INTO queues (queue_name) SELECT format('q%s', n) FROM generate_series(1, 200) AS n")
    await pool.execute(STARTS)
    await pool.execute("ANALYZE")


async def scanned(pool, query, *args):
    """The large tables that a statement's plan reads from end to end."""
    async with pool.acquire() as connection, connection.transaction():
        [row] = await connection.fetch(f"EXPLAIN (FORMAT JSON) {query}", *args)
    found, left = set(), [orjson.loads(row[0])[0]["Plan"]]
    while left:
        node = left.pop()
        if node["Node Type"] == "Seq Scan":
            found.add(node["Relation Name"])
        left += node.get("Plans", ())
    return found & {"runs", "queue_starts"}


async def rows_read(pool, query, *args):
    """The rows and index entries of `runs` that a statement reads, in the functions that it calls, too."""
    async with pool.acquire() as connection, connection.transaction():
        before = await connection.fetchval(READ)
        await connection.fetch(query, *args)
        return await connection.fetchval(READ) - before


async def test_a_claim_reads_no_more_of_the_line_than_it_takes(settings, nc, pool, full):
    async with in_process(settings, nc) as platform:
        await platform.services[1].stop()
        worker = (await platform.agent(Queued)).worker
        offer = worker.offer
        columns = (offer.names, offer.versions, offer.hashes, offer.newest)
        claim = (worker.process_id, "line", "queued", 10, "h", 1, *columns, False)
        assert await scanned(pool, SQL["claim_queued"], *claim) == set()
        assert await rows_read(pool, "SELECT * FROM queue_line('line', 10, NULL, NULL)") < 50
        assert await rows_read(pool, "SELECT * FROM queue_room('line')") < 200, "those that run, and no others"
        assert await rows_read(pool, SQL["look"], None) < 1000


async def test_what_else_happens_in_a_queue_reads_no_more_than_it_names(pool, full):
    row = (["new"], ["queued"], ["run"], [None], ["{}"], ["h"], [None], [None], [None], ["line"], [1], ["k7"], [None])
    assert await scanned(pool, SQL["accept_queued"], *row) == set()
    assert await rows_read(pool, SQL["accept_queued"], *row) < 20
    assert await scanned(pool, SQL["place"], ["new"], False) == set()
    assert await scanned(pool, SQL["missed"], ["new"], "queued") == set()
    assert await scanned(pool, SQL["look"], None) == set()
    await pool.execute("UPDATE runs SET dispatched_at = now() - interval '1 hour' WHERE status = 'pending'")
    assert await rows_read(pool, ENGINE["stale_pending"], 3.0, 1000, [], []) < 50, "the line is not the sweeper's"
