-- Runs as callers see them: accept, look, signal, cancel, resume.

-- name: lock_sessions
-- Within a session the order of turns is the order of commits: whoever accepts holds the session until then.
SELECT pg_advisory_xact_lock(1346719300, key)
FROM (SELECT DISTINCT hashtext(name) AS key FROM unnest($1::text[]) AS name ORDER BY 1) AS wanted

-- name: accept
INSERT INTO runs (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path)
SELECT run_id, agent_name, workflow, session_id, task::json, task_hash, parent_run_id, parent_path
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
  AS input (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path)
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id

-- name: accepted_before
SELECT run_id, task_hash, status FROM runs WHERE run_id = ANY($1::text[])

-- name: get
SELECT run_id, agent_name, workflow, version, source_hash, session_id, parent_run_id, task, status, epoch, process_id,
       attempts, wake_at, waiting_signals, waiting_children, cancel_reason, output, error,
       config_revision, end_seq, created_at, started_at, finished_at
FROM runs WHERE run_id = $1

-- name: why_pending
-- What live processes of the run's agent offer of its workflow, and whether an earlier turn of its session is open.
SELECT count(DISTINCT p.process_id) AS processes,
       array_remove(array_agg(DISTINCT o.version ORDER BY o.version) FILTER (WHERE o.workflow = r.workflow), NULL) AS versions,
       r.session_id IS NOT NULL AND EXISTS (
         SELECT 1 FROM runs AS earlier
         WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
           AND earlier.finished_at IS NULL AND earlier.turn < r.turn) AS behind
FROM runs AS r
LEFT JOIN processes AS p
  ON p.agent_name = r.agent_name AND p.state = 'live' AND p.lease_until > clock_timestamp()
LEFT JOIN LATERAL unnest(p.workflows, p.versions) AS o (workflow, version) ON TRUE
WHERE r.run_id = $1
GROUP BY r.run_id

-- name: outcomes
SELECT run_id, agent_name, status, output, error, waiting_signals, finished_at FROM runs WHERE run_id = ANY($1::text[])

-- name: steps
SELECT seq, path, kind, name, outcome, result, error, attempt, due_at, epoch, config_revision, started_at, finished_at
FROM journal WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3

-- name: recorded_run
SELECT run_id, agent_name, workflow, version, source_hash, session_id, parent_run_id, task, status, attempts, output,
       error, config_revision, config_hash, base_seq, seq_floor, created_at, started_at, finished_at
FROM runs WHERE run_id = $1

-- name: recorded_rows
-- The rows that a replay of the run would read, a page at a time.
SELECT seq, path, kind, name, hash, outcome, result, error, attempt, due_at, signal_seq, config_revision, started_at,
       finished_at
FROM journal WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3

-- name: list
SELECT turn, run_id, agent_name, workflow, session_id, parent_run_id, status, attempts, error, created_at, started_at,
       finished_at
FROM runs
WHERE ($1::text IS NULL OR agent_name = $1)
  AND ($2::text[] IS NULL OR status = ANY($2))
  AND ($3::text IS NULL OR session_id = $3)
  AND ($4::text IS NULL OR parent_run_id = $4)
  AND ($5::bigint IS NULL OR turn < $5)
ORDER BY turn DESC
LIMIT $6

-- name: send_signal
-- The run's row is locked before the signal is there, so that a run going to sleep cannot miss it. Whether it waits is
-- read from the row as it was locked: the statement's own snapshot may be older than the lock.
WITH target AS (
  SELECT run_id, agent_name, status, process_id, waiting_signals FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), open AS (
  SELECT * FROM target WHERE status NOT IN ('completed', 'failed', 'cancelled', 'dead')
), sent AS (
  INSERT INTO signals (run_id, name, payload, signal_id)
  SELECT run_id, $2, $3::json, $4 FROM open
  ON CONFLICT (run_id, signal_id) WHERE signal_id IS NOT NULL DO NOTHING
  RETURNING seq
), woken AS (
  UPDATE runs SET status = 'pending', wake_at = NULL, dispatched_at = now()
  FROM open
  WHERE runs.run_id = open.run_id AND open.status = 'waiting' AND $2 = ANY(open.waiting_signals)
    AND EXISTS (SELECT 1 FROM sent)
  RETURNING runs.run_id
)
SELECT target.agent_name, target.status, target.process_id,
       EXISTS (SELECT 1 FROM sent) AS sent, EXISTS (SELECT 1 FROM woken) AS woken
FROM target

-- name: cancel
-- A run that nobody holds ends at once; a running one is asked to, through its process.
WITH target AS (
  SELECT run_id, agent_name, status, process_id FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), ended AS (
  UPDATE runs SET status = 'cancelled', epoch = epoch + 1, cancel_reason = $2, wake_at = NULL, process_id = NULL,
         finished_at = now(), error = json_build_object('type', 'Cancelled', 'message', $2::text),
         end_seq = 1 + COALESCE((SELECT max(seq) FROM journal WHERE journal.run_id = runs.run_id), 0)
  FROM target
  WHERE runs.run_id = target.run_id AND target.status IN ('pending', 'waiting', 'paused', 'blocked', 'needs_review')
  RETURNING runs.run_id, runs.end_seq
), asked AS (
  UPDATE runs SET cancel_reason = COALESCE(cancel_reason, $2)
  FROM target WHERE runs.run_id = target.run_id AND target.status = 'running'
  RETURNING runs.run_id
)
SELECT target.agent_name, target.status, target.process_id, ended.end_seq,
       ended.run_id IS NOT NULL AS ended, EXISTS (SELECT 1 FROM asked) AS asked
FROM target LEFT JOIN ended USING (run_id)

-- name: live_children
SELECT run_id FROM runs WHERE parent_run_id = ANY($1::text[]) AND finished_at IS NULL ORDER BY run_id

-- name: lock_run
-- Also says whose session must be held before the run's turn may change.
SELECT agent_name, session_id FROM runs WHERE run_id = $1 FOR NO KEY UPDATE

-- name: resume
-- An ended turn that comes back goes to the end of its session's line: `turn` is drawn anew. One that had only stopped
-- keeps its place. The step that a run failed of is tried again, with all its attempts: its outcome is taken back, and
-- the seqs that were used stay used.
WITH target AS (
  SELECT run_id, agent_name, status FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), stopped AS (
  UPDATE runs SET status = 'pending', attempts = 0, error = NULL, dispatched_at = now()
  FROM target
  WHERE runs.run_id = target.run_id AND target.status IN ('blocked', 'paused', 'needs_review')
  RETURNING runs.run_id
), ended AS (
  UPDATE runs SET status = 'pending', attempts = 0, error = NULL, dispatched_at = now(), finished_at = NULL,
         seq_floor = GREATEST(seq_floor, end_seq), end_seq = NULL, cancel_reason = NULL, parent_notified = FALSE, turn = DEFAULT
  FROM target
  WHERE runs.run_id = target.run_id AND target.status IN ('failed', 'dead')
  RETURNING runs.run_id
), last AS (
  SELECT path, kind, outcome FROM journal WHERE run_id = $1 ORDER BY seq DESC LIMIT 1
), taken_back AS (
  DELETE FROM journal USING ended, last
  WHERE last.outcome = 'error' AND last.kind IN ('step', 'transaction')
    AND journal.run_id = ended.run_id AND journal.path = last.path
)
SELECT target.agent_name, target.status,
       EXISTS (SELECT 1 FROM stopped) OR EXISTS (SELECT 1 FROM ended) AS woken
FROM target

-- name: fork
-- A new run with another's task and the first rows of its journal. A child that had not ended is not copied: the new
-- run starts its own. Its epoch is not 0, so that its first claim reads the journal.
WITH source AS (
  SELECT * FROM runs WHERE run_id = $1
), made AS (
  INSERT INTO runs (run_id, agent_name, workflow, version, session_id, task, task_hash, config_revision, config_hash,
                    epoch, base_seq, started_at)
  SELECT $2, agent_name, workflow, version, session_id, task, task_hash, config_revision, config_hash, 1, base_seq,
         started_at
  FROM source
  ON CONFLICT (run_id) DO NOTHING
  RETURNING run_id, agent_name, base_seq
), copied AS (
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, error, attempt, due_at, epoch,
                       config_revision, started_at, finished_at)
  SELECT made.run_id, j.seq, j.path, j.kind, j.name, j.hash, j.outcome, j.result, j.error, j.attempt, j.due_at, 0,
         j.config_revision, j.started_at, j.finished_at
  FROM journal AS j, made
  WHERE j.run_id = $1 AND j.seq < $3 AND j.seq > made.base_seq AND NOT (
    j.kind = 'call' AND j.outcome = 'open' AND NOT EXISTS (
      SELECT 1 FROM journal AS answer
      WHERE answer.run_id = j.run_id AND answer.path = j.path AND answer.seq > j.seq AND answer.seq < $3))
  RETURNING seq
)
SELECT made.run_id, made.agent_name, (SELECT count(*) FROM copied) AS rows_copied FROM made

-- name: step_seq
SELECT seq FROM journal
WHERE run_id = $1 AND (path = $2 OR name = $2 OR seq::text = $2) AND kind NOT IN ('retry', 'config', 'patch')
ORDER BY seq LIMIT 1
