-- Gradual rollouts of configuration: migrations/0005_config_rollouts.sql.

-- name: start
INSERT INTO config_rollouts
    (agent_name, changes, targets, previous, revision, max_failures, started_by, bake_until)
VALUES ($1, $2::text::json, $3, $4::text::json, $5, $6, $7, now() + $8::float8 * interval '1 second')
RETURNING rollout_id;

-- name: baking
SELECT rollout_id, agent_name, changes::text AS changes, targets, previous::text AS previous, revision, max_failures,
    started_at, bake_until <= clock_timestamp() AS baked,
    bake_until <= clock_timestamp() - $1::float8 * interval '1 second' AS overdue
FROM config_rollouts
WHERE state = 'baking'
ORDER BY rollout_id;

-- name: baking_of
SELECT rollout_id, agent_name, changes::text AS changes, targets, previous::text AS previous, revision, max_failures,
    started_at, TRUE AS baked
FROM config_rollouts
WHERE state = 'baking' AND agent_name = $1;

-- name: finish
-- Whoever comes second finds no row, and leaves the configuration alone.
UPDATE config_rollouts SET state = $2, reason = $3, finished_at = now()
WHERE rollout_id = $1 AND state = 'baking'
RETURNING rollout_id;

-- name: list
SELECT rollout_id, agent_name, changes::text AS changes, targets, revision, state, reason, started_by, started_at,
    bake_until, finished_at
FROM config_rollouts
WHERE agent_name = $1
ORDER BY rollout_id DESC
LIMIT 20;

-- name: failed_runs
SELECT count(*)
FROM runs JOIN processes USING (process_id)
WHERE runs.agent_name = $1
  AND processes.instance_id = ANY($2::text[])
  AND runs.status IN ('failed', 'dead')
  AND runs.finished_at > $3;

-- name: changed_meanwhile
SELECT coalesce(max(revision), 0) FROM config_history
WHERE agent_name = $1 AND config_key = ANY($2::text[]) AND revision > $3;
