-- What the scheduler looks up for metrics, now and then.

-- name: backlog
-- Pending runs by agent, the largest backlogs first, with the number of all. The age leaves out runs that stand in a
-- queue or behind a turn of their session: those wait on purpose. Reads the partial index of pending runs.
SELECT r.agent_name, count(*) AS runs,
       COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(
         CASE WHEN r.started_at IS NULL THEN r.created_at ELSE r.dispatched_at END
       ) FILTER (WHERE r.queue_name IS NULL AND r.session_id IS NULL)), 0)::float8 AS oldest,
       (sum(count(*)) OVER ())::bigint AS total
FROM runs AS r WHERE r.status = 'pending'
GROUP BY r.agent_name ORDER BY count(*) DESC, r.agent_name LIMIT $1

-- name: callbacks_due
SELECT count(*) AS callbacks, COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(next_try)), 0)::float8 AS oldest
FROM callbacks WHERE state = 'due' AND next_try <= clock_timestamp()
