-- Conversations. Every write of a turn is one commit with a journal row: in a transaction, or, where the last
-- parameters are that row, by the statement itself (`journal_row`, migrations/0034_journal_row.sql, and
-- `journal_last_row`, migrations/0044_last_row.sql).

-- name: open_turn
-- The row is locked until the commit. Another run's turn that is still open keeps the session. With nothing in the
-- background the messages $4 are appended at once, with the row $5 to $15 if there is one, whose result is `row`; else
-- results of it come first, in statements of their own. Whether a run is over is asked of its key alone: with EXISTS
-- Postgres may look through all that are not.
WITH background AS (
  SELECT EXISTS (SELECT FROM session_results WHERE agent_name = $1 AND session_id = $2 AND seq IS NULL) AS waits
), turn AS (
  INSERT INTO sessions AS s (agent_name, session_id, turn_run_id, next_seq)
  SELECT $1, $2, $3, 1 + CASE WHEN waits THEN 0 ELSE cardinality($4::text[]) END FROM background
  ON CONFLICT (agent_name, session_id) DO UPDATE
  SET updated_at = now(),
      turn_run_id = CASE
        WHEN s.turn_run_id IS NULL OR s.turn_run_id = $3 THEN $3
        WHEN (SELECT r.finished_at IS NULL FROM runs r WHERE r.run_id = s.turn_run_id) THEN s.turn_run_id
        ELSE $3
      END,
      next_seq = s.next_seq + CASE
        WHEN (SELECT waits FROM background) THEN 0
        WHEN s.turn_run_id IS NULL OR s.turn_run_id = $3 THEN cardinality($4::text[])
        WHEN (SELECT r.finished_at IS NULL FROM runs r WHERE r.run_id = s.turn_run_id) THEN 0
        ELSE cardinality($4::text[])
      END
  RETURNING first_seq, next_seq, turn_run_id, input_tokens + output_tokens AS tokens, cost, summary, summary_upto,
            (extract(epoch FROM created_at) * 1000000)::bigint AS born,
            turn_run_id = $3 AND NOT (SELECT waits FROM background) AS appended
), added AS (
  INSERT INTO session_messages (agent_name, session_id, seq, run_id, message)
  SELECT $1, $2, turn.next_seq - cardinality($4::text[]) + m.at - 1, $3, m.message::json
  FROM turn, unnest($4::text[]) WITH ORDINALITY AS m (message, at)
  WHERE turn.appended
)
SELECT turn.*, CASE WHEN turn.appended AND $6::bigint IS NOT NULL THEN
  journal_row($3, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, json_build_object(
    'first', first_seq, 'upto', next_seq - 1, 'tokens', tokens, 'cost', cost, 'summary_upto', summary_upto,
    'summary', CASE WHEN summary_upto >= first_seq THEN summary END, 'born', born), $15)
  END AS row
FROM turn

-- name: open_results
-- What was scheduled and is not in the conversation yet; a child run that ended without a word counts as ended.
SELECT p.call_id, p.run_id, p.tool, p.arguments, p.status, p.result, p.progress, p.created_at,
       r.status AS run_status, r.error AS run_error, j.kind AS last_kind, j.name AS last_step, j.attempt AS last_attempt,
       j.due_at AS last_due
FROM session_results p LEFT JOIN runs r ON r.run_id = p.run_id
LEFT JOIN LATERAL (
  SELECT kind, name, attempt, due_at FROM journal
  WHERE journal.run_id = p.run_id AND journal.shelf = r.shelf ORDER BY seq DESC LIMIT 1
) j ON TRUE
WHERE p.agent_name = $1 AND p.session_id = $2 AND p.seq IS NULL
ORDER BY p.finished_at NULLS LAST, p.created_at, p.call_id
FOR UPDATE OF p

-- name: take_results
UPDATE session_results SET seq = $3
WHERE agent_name = $1 AND session_id = $2 AND call_id = ANY ($4::text[])

-- name: append_messages
-- Appends for the run that holds the turn ($3), or takes up a turn that nobody holds (a run that was resumed).
-- $5 closes the turn; $6 to $8 is what the messages cost; $9 to $20 is the step's row, if there is one, and $21 the
-- output of the run that ends with it, if it does. Returns the first seq, or no row for another's turn.
WITH taken AS (
  UPDATE sessions SET next_seq = next_seq + cardinality($4::text[]), updated_at = now(),
         turn_run_id = CASE WHEN $5 THEN NULL ELSE $3 END,
         input_tokens = input_tokens + $6, output_tokens = output_tokens + $7, cost = cost + $8
  WHERE agent_name = $1 AND session_id = $2
    AND (turn_run_id = $3 OR (SELECT r.finished_at IS NULL FROM runs r WHERE r.run_id = turn_run_id) IS NOT TRUE)
  RETURNING next_seq - cardinality($4::text[]) AS first
), added AS (
  INSERT INTO session_messages (agent_name, session_id, seq, run_id, message)
  SELECT $1, $2, taken.first + m.at - 1, $3, m.message::json
  FROM taken, unnest($4::text[]) WITH ORDINALITY AS m (message, at)
)
SELECT first,
  CASE WHEN $10::bigint IS NOT NULL AND $21::json IS NULL THEN
    journal_row($3, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::json, $20) END AS row,
  CASE WHEN $21::json IS NOT NULL THEN
    journal_last_row($3, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::json, $20, $21::json) END AS joined
FROM taken

-- name: read_messages
SELECT seq, message FROM session_messages
WHERE agent_name = $1 AND session_id = $2 AND seq BETWEEN $3 AND $4
ORDER BY seq

-- name: keep_summary
UPDATE sessions SET summary = $3, summary_upto = $4
WHERE agent_name = $1 AND session_id = $2 AND summary_upto < $4

-- name: schedule_result
INSERT INTO session_results (agent_name, session_id, call_id, run_id, tool, arguments)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING

-- name: deliver_result
UPDATE session_results SET status = $4, result = $5, finished_at = now()
WHERE agent_name = $1 AND session_id = $2 AND call_id = $3 AND seq IS NULL

-- name: live_replicas
SELECT count(*) FROM processes WHERE agent_name = $1 AND state = 'live' AND lease_until > now()

-- name: start_tool
INSERT INTO tool_starts (run_id, call_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING run_id

-- name: forget_tool
DELETE FROM tool_starts WHERE run_id = $1 AND call_id = $2

-- name: get_session
SELECT first_seq, next_seq, turn_run_id FROM sessions WHERE agent_name = $1 AND session_id = $2

-- name: agents_of_session
SELECT agent_name FROM sessions WHERE session_id = $1 ORDER BY updated_at DESC

-- name: history
SELECT m.seq, m.run_id, m.message, m.created_at
FROM session_messages m JOIN sessions s USING (agent_name, session_id)
WHERE m.agent_name = $1 AND m.session_id = $2 AND m.seq >= s.first_seq AND m.seq > $3
ORDER BY m.seq LIMIT $4

-- name: list_sessions
SELECT session_id, next_seq - first_seq AS messages, input_tokens + output_tokens AS tokens, cost, created_at, updated_at,
       turn_run_id
FROM sessions
WHERE agent_name = $1 AND ($2::timestamptz IS NULL OR (updated_at, session_id) < ($2, $3))
ORDER BY updated_at DESC, session_id DESC LIMIT $4

-- name: reset_session
-- A seq is never given twice, so that what some process has cached stays right.
UPDATE sessions SET first_seq = next_seq, summary = NULL, summary_upto = 0, input_tokens = 0, output_tokens = 0, cost = 0,
       updated_at = now()
WHERE agent_name = $1 AND session_id = $2
  AND NOT EXISTS (SELECT FROM runs r WHERE r.run_id = turn_run_id AND r.finished_at IS NULL)
RETURNING first_seq

-- name: drop_messages
WITH gone AS (
  DELETE FROM session_messages WHERE agent_name = $1 AND session_id = $2 AND seq < $3 RETURNING seq
)
SELECT count(*) FROM gone

-- name: drop_results
UPDATE session_results SET seq = 0
WHERE agent_name = $1 AND session_id = $2 AND seq IS NULL AND status <> 'scheduled'

-- name: prune_sessions
DELETE FROM sessions
WHERE (agent_name, session_id) IN (
  SELECT s.agent_name, s.session_id FROM sessions s
  WHERE s.agent_name = $1 AND s.updated_at < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT FROM runs r WHERE r.run_id = s.turn_run_id AND r.finished_at IS NULL)
    AND NOT EXISTS (SELECT FROM session_results p JOIN runs r ON r.run_id = p.run_id
                    WHERE p.agent_name = s.agent_name AND p.session_id = s.session_id AND r.finished_at IS NULL)
  ORDER BY s.updated_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING session_id

-- name: prune_messages
DELETE FROM session_messages WHERE agent_name = $1 AND session_id = ANY ($2::text[])

-- name: prune_results
DELETE FROM session_results WHERE agent_name = $1 AND session_id = ANY ($2::text[])

-- name: keep_progress
UPDATE session_results SET progress = $4
WHERE agent_name = $1 AND session_id = $2 AND call_id = $3 AND status = 'scheduled'
