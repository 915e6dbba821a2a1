-- Decisions of people about tool calls.

-- name: request
INSERT INTO approvals (run_id, call_id, agent_name, session_id, tool, arguments, arguments_hash, reason_asked, expires_at)
VALUES ($1, $2, $3, $4, $5, $6::json, $7, $8, now() + make_interval(secs => $9))
ON CONFLICT DO NOTHING

-- name: decide
-- A decision counts once, and only for the arguments that it names. `why` says what became of it.
WITH target AS (
  SELECT run_id, call_id, status, arguments_hash FROM approvals WHERE run_id = $1 AND call_id = $2 FOR NO KEY UPDATE
), decided AS (
  UPDATE approvals a SET status = $4, edited = $5::json, reason = $6, decided_by = $7, decided_at = now()
  FROM target t
  WHERE a.run_id = t.run_id AND a.call_id = t.call_id AND t.status = 'pending' AND t.arguments_hash = $3
  RETURNING a.run_id
)
SELECT t.status, t.arguments_hash = $3 AS same, EXISTS (SELECT FROM decided) AS decided FROM target t

-- name: expire
-- The time is over: what is pending expires; what was decided in the last moment stands.
WITH expired AS (
  UPDATE approvals SET status = 'expired', decided_at = now()
  WHERE run_id = $1 AND call_id = $2 AND status = 'pending'
  RETURNING run_id
)
SELECT CASE WHEN EXISTS (SELECT FROM expired) THEN 'expired' ELSE a.status END AS status, a.edited, a.reason, a.decided_by
FROM approvals a WHERE a.run_id = $1 AND a.call_id = $2

-- name: list
SELECT run_id, call_id, agent_name, session_id, tool, arguments, arguments_hash, reason_asked, status, edited, reason,
       decided_by, requested_at, expires_at, decided_at
FROM approvals
WHERE ($1::text IS NULL OR status = $1) AND ($2::text IS NULL OR agent_name = $2) AND ($3::text IS NULL OR run_id = $3)
  AND ($4::timestamptz IS NULL OR (requested_at, call_id) < ($4, $5))
ORDER BY requested_at DESC, call_id DESC
LIMIT $6
