-- What people do to runs beside letting them work: cancel, terminate, pause, resume, restart, fork, and that to many.

-- name: lock_run
-- Also says whose session must be held before the run's turn may change.
SELECT agent_name, session_id FROM runs WHERE run_id = $1 FOR NO KEY UPDATE

-- name: cancel
-- A run that has begun is ended by its own code, which may tidy up: a running one is told through its process, another
-- one is woken for it. At once ends what has not begun, what cannot go on, and what nobody could tidy up: no process
-- runs its workflow, and it has registered nothing to be undone.
WITH target AS (
  SELECT run_id, agent_name, status, process_id, epoch, workflow, cancel_reason, shelf
  FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), place AS (
  SELECT *, CASE
    WHEN status = 'running' THEN 'asked'
    WHEN status NOT IN ('pending', 'waiting', 'paused', 'blocked', 'needs_review') THEN NULL
    WHEN epoch > 0 AND status IN ('pending', 'waiting', 'paused') AND (
      EXISTS (SELECT 1 FROM processes AS p WHERE p.agent_name = target.agent_name AND p.state = 'live'
                AND p.lease_until > clock_timestamp() AND target.workflow = ANY(p.workflows))
      OR EXISTS (SELECT 1 FROM journal AS j WHERE j.run_id = target.run_id AND j.shelf = target.shelf
                   AND j.kind = 'on_failure')) THEN 'woken'
    ELSE 'ended' END AS way
  FROM target
), ended AS (
  UPDATE runs SET status = 'cancelled', epoch = runs.epoch + 1, cancel_reason = $2, wake_at = NULL, process_id = NULL,
         finished_at = now(), untold = TRUE, error = $3::json,
         end_seq = 1 + GREATEST(runs.seq_floor, runs.base_seq, COALESCE((
           SELECT max(seq) FROM journal WHERE journal.run_id = runs.run_id AND journal.shelf = runs.shelf), 0))
  FROM place WHERE runs.run_id = place.run_id AND place.way = 'ended'
  RETURNING runs.run_id, runs.end_seq
), told AS (
  UPDATE runs SET cancel_reason = COALESCE(runs.cancel_reason, $2), pause_asked = FALSE,
         status = CASE WHEN place.way = 'woken' THEN 'pending' ELSE runs.status END,
         wake_at = CASE WHEN place.way = 'woken' THEN NULL ELSE runs.wake_at END,
         dispatched_at = CASE WHEN place.way = 'woken' THEN clock_timestamp() ELSE runs.dispatched_at END
  FROM place WHERE runs.run_id = place.run_id AND place.way IN ('asked', 'woken')
)
SELECT place.agent_name, place.status, place.process_id, place.way, ended.end_seq
FROM place LEFT JOIN ended USING (run_id)

-- name: terminate
-- Ends a run whatever it does. The epoch rises: what its process still sends is refused. The row was locked in an
-- earlier statement, so that the journal is seen whole.
WITH target AS (
  SELECT run_id, agent_name, status, process_id FROM runs WHERE run_id = $1
), ended AS (
  UPDATE runs SET status = 'cancelled', epoch = runs.epoch + 1, cancel_reason = COALESCE(runs.cancel_reason, $2),
         wake_at = NULL, process_id = NULL, finished_at = now(), untold = TRUE,
         error = $3::json,
         end_seq = 1 + GREATEST(runs.seq_floor, runs.base_seq, COALESCE((
           SELECT max(seq) FROM journal WHERE journal.run_id = runs.run_id AND journal.shelf = runs.shelf), 0))
  FROM target
  WHERE runs.run_id = target.run_id AND target.status NOT IN ('completed', 'failed', 'cancelled', 'dead')
  RETURNING runs.run_id, runs.end_seq
)
SELECT target.agent_name, target.status, target.process_id, ended.end_seq,
       ended.run_id IS NOT NULL AS ended
FROM target LEFT JOIN ended USING (run_id)

-- name: not_undone
-- What a run has registered to be undone and has not undone, the newest first.
SELECT u.name FROM runs JOIN journal AS u ON u.run_id = runs.run_id AND u.shelf = runs.shelf
WHERE runs.run_id = $1 AND u.seq > runs.base_seq AND u.kind = 'on_failure' AND NOT EXISTS (
  SELECT 1 FROM journal AS done
  WHERE done.run_id = u.run_id AND done.shelf = u.shelf AND done.kind = 'undo' AND done.outcome = 'ok'
    AND done.seq > runs.base_seq AND done.path = 'undo:' || u.path)
ORDER BY u.seq DESC

-- name: live_children
SELECT run_id FROM runs WHERE parent_run_id = ANY($1::text[]) AND finished_at IS NULL ORDER BY run_id

-- name: cancel_asked
SELECT cancel_reason IS NOT NULL FROM runs WHERE run_id = $1

-- name: pause
-- A run that nobody holds stops at once; a running one is asked to, through its process.
WITH target AS (
  SELECT run_id, agent_name, status, process_id, cancel_reason, shelf, base_seq, seq_floor
  FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), place AS (
  SELECT *, CASE
    WHEN cancel_reason IS NOT NULL THEN NULL
    WHEN status IN ('pending', 'waiting') THEN 'paused'
    WHEN status = 'running' THEN 'asked'
    WHEN status = 'paused' THEN 'was' END AS way
  FROM target
), changed AS (
  UPDATE runs SET pause_asked = TRUE, status = CASE WHEN place.way = 'paused' THEN 'paused' ELSE runs.status END
  FROM place WHERE runs.run_id = place.run_id AND place.way IN ('paused', 'asked')
)
SELECT agent_name, status, process_id, way, cancel_reason IS NOT NULL AS ending,
       GREATEST(seq_floor, base_seq, (SELECT COALESCE(max(seq), 0) FROM journal
                           WHERE journal.run_id = place.run_id AND journal.shelf = place.shelf)) AS last_seq
FROM place

-- name: resume
-- An ended turn that comes back goes to the end of its session's line: `turn` is drawn anew. One that had only stopped
-- keeps its place. The step that a run failed of is tried again, with all its attempts: its outcome is taken back, and
-- the seqs that were used stay used. Steps side by side may have failed at once, so that is each failure after which the
-- run began nothing any more (by the clock of the process that wrote them all). Of a child it is asked again. A run whose
-- work was undone to the end has nothing to go on with. A running one that was asked to pause is asked no more.
WITH target AS (
  SELECT run_id, agent_name, status, pause_asked, base_seq FROM runs WHERE run_id = $1 FOR NO KEY UPDATE
), last AS (
  SELECT path, kind, outcome, shelf FROM journal
  WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1) ORDER BY seq DESC LIMIT 1
), failures AS (
  SELECT path, shelf FROM journal AS f
  WHERE run_id = $1 AND shelf = (SELECT shelf FROM last) AND seq > (SELECT base_seq FROM target)
    AND outcome = 'error' AND kind IN ('step', 'transaction', 'undo', 'call')
    AND NOT EXISTS (
      SELECT 1 FROM journal AS later
      WHERE later.run_id = f.run_id AND later.shelf = f.shelf AND later.seq > f.seq
        AND (later.started_at >= f.finished_at OR later.epoch <> f.epoch))
), stopped AS (
  UPDATE runs SET attempts = 0, error = NULL, dispatched_at = now(), pause_asked = FALSE,
         status = CASE WHEN runs.epoch = 0 AND runs.wake_at > now() THEN 'waiting' ELSE 'pending' END  -- put off
  FROM target
  WHERE runs.run_id = target.run_id AND target.status IN ('blocked', 'paused', 'needs_review')
  RETURNING runs.run_id
), ended AS (
  UPDATE runs SET status = 'pending', attempts = 0, error = NULL, dispatched_at = now(), finished_at = NULL,
         seq_floor = GREATEST(seq_floor, end_seq), end_seq = NULL, parent_notified = FALSE, turn = DEFAULT,
         pause_asked = FALSE, untold = FALSE,
         cancel_reason = CASE WHEN EXISTS (SELECT 1 FROM last WHERE kind = 'undo') THEN runs.cancel_reason END
  FROM target
  WHERE runs.run_id = target.run_id AND target.status IN ('failed', 'dead')
    AND NOT EXISTS (SELECT 1 FROM last WHERE kind = 'undo' AND outcome = 'ok' AND target.status = 'failed')
  RETURNING runs.run_id
), continued AS (
  UPDATE runs SET pause_asked = FALSE
  FROM target WHERE runs.run_id = target.run_id AND target.status = 'running' AND target.pause_asked
  RETURNING runs.run_id
), taken_back AS (
  DELETE FROM journal USING ended, failures
  WHERE journal.run_id = ended.run_id AND journal.shelf = failures.shelf AND journal.path = failures.path
    AND journal.outcome = 'error'
)
SELECT target.agent_name, target.status,
       EXISTS (SELECT 1 FROM stopped) OR EXISTS (SELECT 1 FROM ended) AS woken,
       EXISTS (SELECT 1 FROM continued) AS continued,
       target.status = 'failed' AND EXISTS (SELECT 1 FROM last WHERE kind = 'undo' AND outcome = 'ok') AS undone
FROM target

-- name: restart
-- A new run with another's task; both stay.
INSERT INTO runs (run_id, agent_name, workflow, session_id, task, task_hash, origin_run_id, origin_kind, queue_name,
                  priority, fair_key, callback)
SELECT $2, agent_name, workflow, session_id, task, task_hash, run_id, 'restart', queue_name, priority, fair_key,
       callback
FROM runs WHERE run_id = $1
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id, agent_name

-- name: fork
-- A new run with another's task and the first rows of its journal. A child that had not ended is not copied: the new
-- run starts its own. The step itself has all its attempts again. A row in its place says whose run it was up to there,
-- for what is derived from the run's id. The epoch is not 0, so that the first claim reads the journal.
WITH source AS (
  SELECT * FROM runs WHERE run_id = $1
), made AS (
  INSERT INTO runs (run_id, agent_name, workflow, version, session_id, task, task_hash, config_revision, config_hash,
                    epoch, base_seq, started_at, origin_run_id, origin_kind, queue_name, priority, fair_key, shelf)
  SELECT $2, agent_name, workflow, version, session_id, task, task_hash, config_revision, config_hash, 1, base_seq,
         started_at, run_id, 'fork', queue_name, priority, fair_key, shelf_for(agent_name)
  FROM source
  ON CONFLICT (run_id) DO NOTHING
  RETURNING run_id, agent_name, base_seq, shelf
), copied AS (
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, error, attempt, due_at, epoch,
                       config_revision, started_at, finished_at, process_id, input, shelf)
  SELECT made.run_id, j.seq, j.path, j.kind, j.name, j.hash, j.outcome, j.result, j.error, j.attempt, j.due_at, 0,
         j.config_revision, j.started_at, j.finished_at, j.process_id,
         CASE WHEN NOT starts_with(j.input, '{"$perdure"') THEN j.input END, made.shelf
  FROM journal AS j, made
  WHERE j.run_id = $1 AND j.shelf = (SELECT shelf FROM source) AND j.seq < $3 AND j.seq > made.base_seq AND NOT (
    j.kind = 'call' AND j.outcome = 'open' AND NOT EXISTS (
      SELECT 1 FROM journal AS answer
      WHERE answer.run_id = j.run_id AND answer.shelf = j.shelf AND answer.path = j.path AND answer.seq > j.seq
        AND answer.seq < $3)) AND NOT (
    j.kind = 'retry' AND j.path = (
      SELECT path FROM journal AS step WHERE step.run_id = $1 AND step.shelf = j.shelf AND step.seq = $3))
  RETURNING seq
), marked AS (
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, finished_at, shelf)
  SELECT run_id, $3, '!fork', 'fork', $1, '', 'ok', 1, 0, now(), now(), shelf FROM made
)
SELECT made.run_id, made.agent_name, (SELECT count(*) FROM copied) AS rows_copied FROM made

-- name: origin
SELECT origin_run_id, origin_kind FROM runs WHERE run_id = $1

-- name: step_seq
-- A bare number is a seq rather than a path. What a run did before it continued as new is no part of a fork.
SELECT seq FROM journal
WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1)
  AND seq > (SELECT base_seq FROM runs WHERE run_id = $1)
  AND (path = $2 OR name = $2 OR seq::text = $2) AND kind NOT IN ('retry', 'config', 'patch', 'fork')
ORDER BY name = $2 DESC, seq::text = $2 DESC, seq LIMIT 1

-- name: matching
-- The runs that a filter finds, in the order of their turns, after $1 and up to $2; with $11 those of no tenant alone.
SELECT turn, run_id FROM runs
WHERE turn > $1 AND turn <= $2
  AND ($3::text IS NULL OR agent_name = $3)
  AND ($4::text[] IS NULL OR status = ANY($4))
  AND ($5::text IS NULL OR workflow = $5)
  AND ($6::text IS NULL OR version = $6)
  AND ($7::text IS NULL OR session_id = $7)
  AND ($8::timestamptz IS NULL OR created_at >= $8)
  AND ($9::timestamptz IS NULL OR created_at < $9)
  AND ($11::text IS NULL OR run_id LIKE 'default\_\_%' OR run_id !~ '^[a-z0-9](-?[a-z0-9]){0,31}__')
ORDER BY turn LIMIT $10

-- name: matching_of_tenant
-- The same among the runs of tenant $11, whose ids begin with its name. The condition of the index stands here, too.
SELECT turn, run_id FROM runs
WHERE strpos(run_id, '__') > 0 AND split_part(run_id, '__', 1) = $11
  AND turn > $1 AND turn <= $2
  AND ($3::text IS NULL OR agent_name = $3)
  AND ($4::text[] IS NULL OR status = ANY($4))
  AND ($5::text IS NULL OR workflow = $5)
  AND ($6::text IS NULL OR version = $6)
  AND ($7::text IS NULL OR session_id = $7)
  AND ($8::timestamptz IS NULL OR created_at >= $8)
  AND ($9::timestamptz IS NULL OR created_at < $9)
ORDER BY turn LIMIT $10

-- name: newest_turn
SELECT COALESCE(max(turn), 0) FROM runs
