-- Schedules: cron expressions whose moments become runs.

-- name: set
-- The next moment stays what it was while the schedule goes on as before; a new one, one that comes back or has another
-- expression begins now.
INSERT INTO schedules AS s (name, agent_name, workflow, task, cron, timezone, missed, missed_limit, overlap, queue_name,
                            priority, fair_key, paused, next_at)
VALUES ($1, $2, $3, $4::json, $5, $6, $7, $8, $9, $10, $11, $12, COALESCE($13, FALSE), $14)
ON CONFLICT (name) DO UPDATE SET
  agent_name = $2, workflow = $3, task = $4::json, cron = $5, timezone = $6, missed = $7, missed_limit = $8,
  overlap = $9, queue_name = $10, priority = $11, fair_key = $12, paused = COALESCE($13, s.paused),
  next_at = CASE WHEN s.cron = $5 AND s.timezone = $6 AND NOT s.paused THEN s.next_at ELSE $14 END,
  error = NULL, updated_at = now()
RETURNING *

-- name: get
SELECT * FROM schedules WHERE name = $1

-- name: list
SELECT * FROM schedules
WHERE ($1::text IS NULL OR agent_name = $1) AND ($2::text IS NULL OR name > $2)
ORDER BY name LIMIT $3

-- name: pause
UPDATE schedules SET paused = TRUE, updated_at = now() WHERE name = $1 RETURNING *

-- name: resume
-- Moments that passed during the pause are not made up for: `backfill` does that.
UPDATE schedules SET next_at = CASE WHEN paused THEN $2 ELSE next_at END, paused = FALSE, error = NULL, updated_at = now()
WHERE name = $1 RETURNING *

-- name: delete
DELETE FROM schedules WHERE name = $1 RETURNING *

-- name: due
-- With whether the last run of each is still under way.
SELECT s.*, r.run_id IS NOT NULL AND r.finished_at IS NULL AS busy
FROM schedules AS s LEFT JOIN runs AS r ON r.run_id = s.last_run_id
WHERE NOT s.paused AND s.next_at <= $1
ORDER BY s.next_at LIMIT $2 FOR NO KEY UPDATE OF s SKIP LOCKED

-- name: ticked
UPDATE schedules SET next_at = $2, last_at = COALESCE($3, last_at), last_run_id = COALESCE($4, last_run_id)
WHERE name = $1

-- name: broken
UPDATE schedules SET paused = TRUE, error = $2 WHERE name = $1

-- name: next
SELECT min(next_at) FROM schedules WHERE NOT paused AND next_at IS NOT NULL
