-- What the HTTP door reads and writes by itself.

-- name: runs_by_id
-- What it takes to know who may see a run, and whether it has ended.
SELECT run_id, agent_name AS agent, status, end_seq FROM runs WHERE run_id = ANY($1::text[])

-- name: turn_of
SELECT turn FROM runs WHERE run_id = $1

-- name: turns
-- The runs of a conversation after a turn, in their order.
SELECT turn, run_id, agent_name FROM runs
WHERE session_id = $1 AND turn > $2
ORDER BY turn LIMIT $3

-- name: tenant_runs
-- A tenant's runs, the newest first. The condition of the index stands here too, so that it is used.
SELECT turn, run_id, agent_name, workflow, session_id, parent_run_id, status, attempts, error, created_at, started_at,
       finished_at
FROM runs
WHERE strpos(run_id, '__') > 0 AND split_part(run_id, '__', 1) = $1
  AND ($2::text IS NULL OR agent_name = $2)
  AND ($3::text[] IS NULL OR status = ANY($3))
  AND ($4::text IS NULL OR session_id = $4)
  AND ($5::text IS NULL OR parent_run_id = $5)
  AND ($6::bigint IS NULL OR turn < $6)
  AND ($8::text IS NULL OR workflow = $8)
  AND ($9::text IS NULL OR version = $9)
  AND ($10::text IS NULL OR queue_name = $10)
  AND ($11::timestamptz IS NULL OR created_at >= $11)
  AND ($12::timestamptz IS NULL OR created_at < $12)
ORDER BY turn DESC
LIMIT $7

-- name: keys_by_id
-- The keys of these ids that count now, and, in a row without an id, whether there is any key at all.
SELECT key_id, name, hash, role, tenant, agents, rate_limit, last_used_at FROM gateway_keys
WHERE key_id = ANY($1::text[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM gateway_keys)

-- name: used_keys
UPDATE gateway_keys SET last_used_at = now()
WHERE key_id = ANY($1::text[]) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')

-- name: make_key
INSERT INTO gateway_keys (key_id, name, hash, role, tenant, agents, rate_limit, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8))
RETURNING expires_at

-- name: list_keys
SELECT key_id, name, role, tenant, agents, rate_limit, created_at, expires_at, last_used_at, revoked_at,
       COALESCE(expires_at < now(), FALSE) AS expired
FROM gateway_keys ORDER BY created_at, key_id

-- name: revoke_key
UPDATE gateway_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE key_id = $1 RETURNING name, revoked_at

-- name: lock_pushed
-- From here on its end tells `push_configs`. What ended before is told by `tell_pushed`.
UPDATE runs SET pushes = TRUE WHERE run_id = $1 RETURNING epoch, end_seq, status

-- name: keep_push
-- None when the run has $6 others.
INSERT INTO push_configs (run_id, config_id, url, secrets, form)
SELECT $1, $2, $3, $4, $5
WHERE (SELECT count(*) FROM push_configs WHERE run_id = $1 AND config_id <> $2) < $6
ON CONFLICT (run_id, config_id) DO UPDATE SET url = EXCLUDED.url, secrets = EXCLUDED.secrets, form = EXCLUDED.form
RETURNING config_id

-- name: tell_pushed
SELECT push_rows($1, $2, $3, $4, $5)

-- name: pushes_of
SELECT config_id, url FROM push_configs WHERE run_id = $1 AND ($2::text IS NULL OR config_id = $2) ORDER BY config_id

-- name: drop_push
WITH gone AS (DELETE FROM push_configs WHERE run_id = $1 AND config_id = $2)
DELETE FROM callbacks WHERE run_id = $1 AND state = 'due' AND target ->> 'push' = $2
