-- What begins runs by itself.

-- name: bury
INSERT INTO dead_letters (agent_name, workflow, subject, message_id, headers, data, reason)
VALUES ($1, $2, $3, $4, $5::json, $6, $7)
ON CONFLICT DO NOTHING

-- name: cron_mark
-- The last moment that was fired; a schedule that is new begins now.
INSERT INTO cron_marks (agent_name, workflow, schedule, fired_for) VALUES ($1, $2, $3, $4)
ON CONFLICT (agent_name, workflow, schedule) DO UPDATE SET fired_for = cron_marks.fired_for
RETURNING fired_for

-- name: cron_fired
UPDATE cron_marks SET fired_for = $4
WHERE agent_name = $1 AND workflow = $2 AND schedule = $3 AND fired_for < $4
