-- Runs as callers see them: accept, look, signal. What is done to them stands in control.sql.

-- name: lock_sessions
-- Within a session the order of turns is the order of commits: whoever accepts holds the session until then.
SELECT pg_advisory_xact_lock(1346719300, key)
FROM (SELECT DISTINCT hashtext(name) AS key FROM unnest($1::text[]) AS name ORDER BY 1) AS wanted

-- name: accept
-- Takes the locks of `lock_sessions` itself, so that it needs no transaction around it: a row, and with it its number in
-- the order of turns, is made only when `locked` has been counted.
-- A start that names a process which has a slot for it ($10) is claimed for that one at once, as block `claim` would
-- right after: the row begins as `running`, in its first epoch. If the process cannot have it (it is lost, the agent's
-- runs stand in a queue, an earlier turn of the session is not over) the run is pending, and woken as any other.
WITH input AS (
  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[])
    AS t (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path, trace,
          process_id, version, source_hash, config_hash, config_revision)
), locked AS MATERIALIZED (
  SELECT pg_advisory_xact_lock(1346719300, key)
  FROM (SELECT DISTINCT hashtext(agent_name || '/' || session_id) AS key FROM input WHERE session_id IS NOT NULL
        ORDER BY 1) AS wanted
), holder AS MATERIALIZED (
  SELECT p.process_id, p.agent_name, shelf_for(p.agent_name) AS shelf
  FROM processes AS p
  WHERE p.process_id = ANY($10::text[]) AND p.state = 'live' AND p.lease_until > clock_timestamp()
    AND NOT EXISTS (
      SELECT 1 FROM queues AS q
      WHERE q.queue_name IN (p.agent_name, '*') AND num_nonnulls(q.concurrency, q.process_concurrency, q.rate_limit) > 0)
), placed AS MATERIALIZED (  -- no join: turns are numbered in the order of the input
  SELECT input.*, CASE
    WHEN input.process_id IS NOT NULL AND (input.session_id IS NULL OR session_rests(input.agent_name, input.session_id))
    THEN (SELECT h.shelf FROM holder AS h WHERE h.process_id = input.process_id AND h.agent_name = input.agent_name)
    END AS shelf
  FROM input CROSS JOIN (SELECT count(*) FROM locked) AS after
)
INSERT INTO runs (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path, trace,
                  status, epoch, attempts, process_id, version, source_hash, config_hash, config_revision, started_at,
                  shelf)
SELECT run_id, agent_name, workflow, session_id, task::json, task_hash, parent_run_id, parent_path, trace,
       CASE WHEN held THEN 'running' ELSE 'pending' END, held::integer, held::integer,
       CASE WHEN held THEN process_id END, CASE WHEN held THEN version END, CASE WHEN held THEN source_hash END,
       CASE WHEN held THEN config_hash END, CASE WHEN held THEN config_revision END, CASE WHEN held THEN now() END,
       COALESCE(shelf, 0)
FROM placed CROSS JOIN LATERAL (SELECT shelf IS NOT NULL AS held) AS t
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id, started_at

-- name: accepted_before
SELECT run_id, task_hash, status FROM runs WHERE run_id = ANY($1::text[])

-- name: has_ended
SELECT finished_at IS NOT NULL FROM runs WHERE run_id = $1

-- name: get
SELECT run_id, agent_name, workflow, version, source_hash, session_id, parent_run_id, origin_run_id,
       origin_kind, task, status, epoch, process_id, attempts, queue_name, priority, fair_key, wake_at, waiting_signals,
       waiting_children, cancel_reason, output, error,
       config_revision, end_seq, created_at, started_at, finished_at, callback IS NOT NULL AS callback
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
-- The first row of an epoch says which process wrote them all.
WITH place AS (
  SELECT shelf FROM runs WHERE run_id = $1
), holders AS (
  SELECT epoch, max(process_id) AS process_id FROM journal
  WHERE run_id = $1 AND shelf = (SELECT shelf FROM place) AND process_id IS NOT NULL GROUP BY epoch
)
SELECT seq, path, kind, name, outcome, input, result, error, attempt, due_at, epoch, holders.process_id, config_revision,
       started_at, finished_at
FROM journal LEFT JOIN holders USING (epoch)
WHERE run_id = $1 AND shelf = (SELECT shelf FROM place) AND seq > $2
ORDER BY seq LIMIT $3

-- name: recorded_run
SELECT run_id, agent_name, workflow, version, source_hash, session_id, parent_run_id, task, status, attempts, output,
       error, config_revision, config_hash, base_seq, seq_floor, created_at, started_at, finished_at
FROM runs WHERE run_id = $1

-- name: recorded_rows
-- The rows that a replay of the run would read, a page at a time.
SELECT seq, path, kind, name, hash, outcome, result, error, attempt, due_at, signal_seq, config_revision, started_at,
       finished_at
FROM journal WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1) AND seq > $2
ORDER BY seq LIMIT $3

-- name: list
SELECT turn, run_id, agent_name, workflow, session_id, parent_run_id, status, queue_name, priority, attempts, error, created_at, started_at,
       finished_at
FROM runs
WHERE ($1::text IS NULL OR agent_name = $1)
  AND ($2::text[] IS NULL OR status = ANY($2))
  AND ($3::text IS NULL OR session_id = $3)
  AND ($4::text IS NULL OR parent_run_id = $4)
  AND ($5::bigint IS NULL OR turn < $5)
  AND ($7::text IS NULL OR queue_name = $7)
  AND ($8::text IS NULL OR workflow = $8)
  AND ($9::text IS NULL OR version = $9)
  AND ($10::timestamptz IS NULL OR created_at >= $10)
  AND ($11::timestamptz IS NULL OR created_at < $11)
ORDER BY turn DESC
LIMIT $6

-- name: send_signals
-- One signal to each of these runs. A run's row is locked before the signal is there, so that a run going to sleep cannot
-- miss it. Whether it waits is read from the row as it was locked: the statement's own snapshot may be older than the lock.
WITH wanted AS (
  SELECT * FROM unnest($1::text[], $3::text[]) AS t (run_id, payload) ORDER BY run_id COLLATE "C"
), target AS (
  SELECT r.run_id, r.agent_name, r.status, r.process_id, r.waiting_signals, wanted.payload
  FROM wanted CROSS JOIN LATERAL (
    SELECT run_id, agent_name, status, process_id, waiting_signals FROM runs
    WHERE run_id = wanted.run_id FOR NO KEY UPDATE
  ) AS r
), open AS (
  SELECT * FROM target WHERE status NOT IN ('completed', 'failed', 'cancelled', 'dead')
), sent AS (
  INSERT INTO signals (run_id, name, payload, signal_id)
  SELECT run_id, $2, payload::json, $4 FROM open
  ON CONFLICT (run_id, signal_id) WHERE signal_id IS NOT NULL DO NOTHING
  RETURNING run_id
), woken AS (
  UPDATE runs SET status = 'pending', wake_at = NULL, dispatched_at = now()
  FROM open JOIN sent USING (run_id)
  WHERE runs.run_id = open.run_id AND open.status = 'waiting' AND $2 = ANY(open.waiting_signals)
  RETURNING runs.run_id
)
SELECT target.run_id, target.agent_name, target.status, target.process_id,
       target.run_id IN (SELECT run_id FROM sent) AS sent, target.run_id IN (SELECT run_id FROM woken) AS woken,
       EXISTS (SELECT 1 FROM signals AS s WHERE s.run_id = target.run_id AND s.signal_id = $4) AS known
FROM target

-- name: family_root
-- From a run up, by its parents and by what it is a fork or a restart of.
WITH RECURSIVE up AS (
  SELECT run_id, COALESCE(parent_run_id, origin_run_id) AS above, 0 AS height FROM runs WHERE run_id = $1
  UNION ALL
  SELECT r.run_id, COALESCE(r.parent_run_id, r.origin_run_id), up.height + 1
  FROM up JOIN runs AS r ON r.run_id = up.above WHERE up.height < 100
)
SELECT run_id FROM up ORDER BY height DESC LIMIT 1

-- name: family
-- From a run down: children it waits for, runs it started, forks and restarts; breadth first, each under one other.
WITH RECURSIVE down AS (
  SELECT $1::text COLLATE "C" AS run_id, NULL::text COLLATE "C" AS above, 'root' AS relation, 0 AS depth
  UNION ALL
  SELECT below.run_id, down.run_id, below.relation, down.depth + 1
  FROM down, LATERAL (
    SELECT c.run_id, 'child' AS relation FROM runs AS c WHERE c.parent_run_id = down.run_id
    UNION ALL
    SELECT c.run_id, c.origin_kind FROM runs AS c WHERE c.origin_run_id = down.run_id AND c.parent_run_id IS NULL
    UNION ALL
    SELECT (j.result ->> 'run_id') COLLATE "C", 'started' FROM runs AS p JOIN journal AS j
      ON j.run_id = p.run_id AND j.shelf = p.shelf
    WHERE p.run_id = down.run_id AND j.kind = 'start' AND j.outcome = 'ok'
  ) AS below
  WHERE down.depth < 32
)
SELECT found.run_id, found.above, found.relation, r.agent_name, r.workflow, r.status, r.error, r.created_at,
       r.started_at, r.finished_at
FROM (SELECT * FROM down LIMIT $2) AS found JOIN runs AS r ON r.run_id = found.run_id
ORDER BY found.depth, r.turn
