-- Telling of ends: callbacks, and events that whoever committed an end may not have lived to publish.

-- name: set_callbacks
UPDATE runs SET callback = said.callback::json
FROM unnest($1::text[], $2::text[]) AS said (run_id, callback) WHERE runs.run_id = said.run_id

-- name: take_callbacks
-- Whoever takes one has $2 seconds to deliver it; if it dies, the next one does. So a callback may come twice.
UPDATE callbacks SET attempts = callbacks.attempts + 1, next_try = clock_timestamp() + $2 * interval '1 second'
FROM (
  SELECT callback_id FROM callbacks WHERE state = 'due' AND next_try <= clock_timestamp()
  ORDER BY next_try LIMIT $1 FOR UPDATE SKIP LOCKED
) AS due
WHERE callbacks.callback_id = due.callback_id
RETURNING callbacks.callback_id, callbacks.run_id, callbacks.end_seq, callbacks.status, callbacks.target,
          callbacks.attempts, callbacks.created_at

-- name: ends
SELECT run_id, agent_name, workflow, session_id, status, output, error, end_seq, finished_at
FROM runs WHERE run_id = ANY($1::text[])

-- name: callback_delivered
UPDATE callbacks SET state = 'delivered', delivered_at = now(), last_error = NULL WHERE callback_id = $1

-- name: callback_failed
UPDATE callbacks SET last_error = $2, state = CASE WHEN $3::float8 IS NULL THEN 'given_up' ELSE 'due' END,
       next_try = clock_timestamp() + COALESCE($3, 0) * interval '1 second'
WHERE callback_id = $1 AND state = 'due'

-- name: callbacks_of
SELECT callback_id, status, target ->> 'url' AS url, target ->> 'subject' AS subject, state, attempts, last_error,
       CASE WHEN state = 'due' THEN next_try END AS next_try, delivered_at
FROM callbacks WHERE run_id = $1 ORDER BY created_at DESC LIMIT 10

-- name: untold_ends
SELECT run_id, agent_name, status, end_seq, output, error, finished_at FROM runs
WHERE untold AND finished_at < $1 ORDER BY finished_at LIMIT $2

-- name: told_ends
UPDATE runs SET untold = FALSE
FROM (
  SELECT r.run_id FROM runs AS r JOIN unnest($1::text[], $2::bigint[]) AS told (run_id, end_seq)
    ON r.run_id = told.run_id AND r.end_seq = told.end_seq
  ORDER BY r.run_id FOR NO KEY UPDATE OF r
) AS told
WHERE runs.run_id = told.run_id

-- name: doubt_ends
-- A process that ended runs since $2 was cut off from NATS: whether their events arrived is not known.
UPDATE runs SET untold = TRUE
FROM (
  SELECT r.run_id FROM runs AS r WHERE r.finished_at >= $2 AND r.process_id = $1
  ORDER BY r.run_id FOR NO KEY UPDATE OF r
) AS ended
WHERE runs.run_id = ended.run_id

-- name: push_of
SELECT url, secrets, form FROM push_configs WHERE run_id = $1 AND config_id = $2
