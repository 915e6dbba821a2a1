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
UPDATE schedules SET next_at = CASE WHEN retired_at IS NULL AND paused THEN $2 ELSE next_at END,
  paused = FALSE, error = NULL, updated_at = now()
WHERE name = $1 RETURNING *

-- name: delete
-- One that code declares stays while a process says so; when one comes that does, it is made again.
WITH gone AS (
  DELETE FROM schedules AS s
  WHERE s.name = $1 AND (NOT s.declared OR s.retired_at IS NOT NULL OR NOT EXISTS (
    SELECT FROM schedule_declarations AS d
    WHERE d.agent_name = s.agent_name AND d.seen_at > now() - $2::float8 * interval '1 second'))
  RETURNING s.*
), again AS (
  UPDATE schedule_declarations AS d SET holds = FALSE FROM gone
  WHERE gone.declared AND gone.retired_at IS NULL AND d.agent_name = gone.agent_name
)
SELECT * FROM gone

-- name: due
-- With whether the last run of each is still under way, and whether it has not begun yet.
SELECT s.*, r.run_id IS NOT NULL AND r.finished_at IS NULL AS busy,
       r.run_id IS NOT NULL AND r.finished_at IS NULL AND r.epoch = 0 AS unbegun
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

-- What the code of agents declares.

-- name: declares
SELECT EXISTS (SELECT FROM schedule_declarations WHERE agent_name = $1)

-- name: declare
-- Written at most once in $5 seconds, however many processes say it. One that comes after $4 seconds of silence is new.
INSERT INTO schedule_declarations AS d (agent_name, digest, crons) VALUES ($1, $2, $3::json)
ON CONFLICT (agent_name, digest) DO UPDATE
SET since = CASE WHEN d.seen_at < now() - $4::float8 * interval '1 second' THEN now() ELSE d.since END, seen_at = now()
WHERE d.seen_at < now() - $5::float8 * interval '1 second'

-- name: news
-- Agents whose newest set is not the one that holds.
SELECT agent_name FROM (
  SELECT DISTINCT ON (agent_name) agent_name, holds FROM schedule_declarations
  WHERE seen_at > now() - $1::float8 * interval '1 second' ORDER BY agent_name, since DESC, digest DESC
) AS newest
WHERE NOT holds LIMIT $2

-- name: lock_declarations
SELECT digest FROM schedule_declarations WHERE agent_name = $1 ORDER BY digest FOR NO KEY UPDATE

-- name: newest
SELECT digest, crons, holds FROM schedule_declarations
WHERE agent_name = $1 AND seen_at > now() - $2::float8 * interval '1 second' ORDER BY since DESC, digest DESC LIMIT 1

-- name: declared_due
-- Whether a moment of what has been declared is still to become a run.
SELECT EXISTS (SELECT FROM schedules WHERE agent_name = $1 AND declared AND NOT paused AND next_at <= $2)

-- name: hold
-- Sets of long ago go.
WITH old AS (
  DELETE FROM schedule_declarations WHERE agent_name = $1 AND digest <> $2 AND seen_at < now() - interval '7 days'
)
UPDATE schedule_declarations SET holds = digest = $2
WHERE agent_name = $1 AND holds IS DISTINCT FROM (digest = $2) AND (digest = $2 OR seen_at >= now() - interval '7 days')

-- name: set_declared
-- The next moment stays what it was while the schedule goes on as before; a pause of a person's stays, too. $10 is the
-- moment with which one begins that a process of before has ticked itself.
INSERT INTO schedules AS s (name, agent_name, workflow, cron, timezone, missed, missed_limit, overlap, next_at, declared,
                            error)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, COALESCE($10::timestamptz, $9::timestamptz), TRUE, $11)
ON CONFLICT (name) DO UPDATE SET
  workflow = $3, task = NULL, cron = $4, timezone = $5, missed = $6, missed_limit = $7, overlap = $8, declared = TRUE,
  paused = s.paused AND s.error IS NULL, retired_at = NULL, error = $11, updated_at = now(),
  next_at = CASE WHEN s.cron = $4 AND s.timezone = $5 AND s.retired_at IS NULL AND s.error IS NULL AND NOT s.paused
                 THEN s.next_at ELSE $9 END
WHERE (s.workflow, s.cron, s.timezone, s.missed, s.missed_limit, s.overlap, s.error)
      IS DISTINCT FROM ($3, $4, $5, $6, $7, $8, $11) OR s.retired_at IS NOT NULL OR NOT s.declared

-- name: retire
UPDATE schedules SET retired_at = now(), next_at = NULL, updated_at = now()
WHERE agent_name = $1 AND declared AND retired_at IS NULL AND name <> ALL($2::text[])

-- name: take_marks
DELETE FROM cron_marks WHERE agent_name = $1 RETURNING workflow, schedule, fired_for
