"""However many runs others have, what a tenant lists is read by an index, and nothing is read from end to end."""

from __future__ import annotations

import orjson
import pytest

from perdure.store.queries import load_queries
from tests.integration.engine.test_hot_statements_find_runs_by_their_keys import READS, nodes

EDGE, CONTROL, ENDS = load_queries("edge.sql"), load_queries("control.sql"), load_queries("ends.sql")
NO = (None,) * 5
OF_TENANT = {"runs_of_tenant"}
STATEMENTS = {
    "tenant_runs": (EDGE["tenant_runs"], ("t7", *NO, 51, *NO), OF_TENANT),
    "tenant_runs by state": (EDGE["tenant_runs"], ("t7", None, ["completed"], *NO[:3], 51, *NO), OF_TENANT),
    "tenant_runs of an agent": (EDGE["tenant_runs"], ("t7", "a", *NO[:4], 51, *NO), OF_TENANT),
    "matching_of_tenant": (
        CONTROL["matching_of_tenant"], (0, 2**40, "a", ["waiting"], *NO, 101, "t7"), OF_TENANT,
    ),
    "turns": (EDGE["turns"], ("t7__talk", 0, 50), {"runs_of_session"}),
    "runs_by_id": (EDGE["runs_by_id"], (["t7__00001", "t8__00002"],), {"runs_pkey"}),
    "turn_of": (EDGE["turn_of"], ("t7__00001",), {"runs_pkey"}),
    "lock_pushed": (EDGE["lock_pushed"], ("t7__00001",), {"runs_pkey"}),
    "pushes_of": (EDGE["pushes_of"], ("t7__00001", None), {"push_configs_pkey"}),
    "push_of": (ENDS["push_of"], ("t7__00001", "x"), {"push_configs_pkey"}),
    "drop_push": (EDGE["drop_push"], ("t7__00001", "x"), {"push_configs_pkey", "callbacks_runs", "callbacks_due"}),
}  # fmt: skip
FILL = """
INSERT INTO runs (run_id, agent_name, task, task_hash, status, session_id, finished_at)
SELECT 't' || n % 200 || '__' || lpad(n::text, 5, '0'), 'a', '1', 'h', s, 't' || n % 200 || '__talk',
       CASE s WHEN 'completed' THEN now() END
FROM generate_series(1, 12000) AS n,
     LATERAL (SELECT ('{pending,running,waiting,completed}'::text[])[1 + n % 4]) AS t (s)
"""
CONFIGS = "INSERT INTO push_configs SELECT run_id, 'x', 'https://example.com', '{}', '1.0' FROM runs"
CALLBACKS = """
INSERT INTO callbacks (callback_id, run_id, end_seq, status, target, state)
SELECT run_id, run_id, 1, 'completed', '{}', 'delivered' FROM runs
"""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_what_a_tenant_lists_is_read_by_an_index(pool, plans):
    wrong = []
    async with pool.acquire() as connection:
        known = ("ANALYZE runs, push_configs, callbacks", f"SET plan_cache_mode = {plans}")
        for statement in (FILL, CONFIGS, CALLBACKS, *known):
            await connection.execute(statement)
        for name, (statement, arguments, allowed) in STATEMENTS.items():
            rows = await connection.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
            for node in nodes(orjson.loads(rows[0][0])[0]["Plan"]):
                if node["Node Type"] in READS and node.get("Index Name") not in allowed:
                    wrong.append((name, node["Node Type"], node.get("Relation Name"), node.get("Index Name")))  # noqa: PERF401 -- one line less is no clearer
        await connection.execute("RESET plan_cache_mode")
    assert not wrong, wrong
