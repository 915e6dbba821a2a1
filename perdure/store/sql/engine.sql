-- The engine's hot path and its repair loops. Every statement that locks several runs locks them in run_id order.
--
-- What is done to runs that are named by their ids looks at those alone, whatever the statistics say, which are old by
-- nature: LATERAL is one look into the key a run, and IS NOT DISTINCT FROM keeps the planner from the index of all
-- running runs, or of all of an agent's.

-- name: register_process
INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until, workflows, versions)
VALUES ($1, $2, $3, $4, pg_postmaster_start_time(), clock_timestamp() + $5 * interval '1 second', $6::text[], $7::text[])

-- name: hurry_pending
-- A process that can take these runs is there now: their wake-ups need not keep their long pauses.
UPDATE runs SET dispatches = 0
FROM (
  SELECT r.run_id FROM runs AS r WHERE r.agent_name = $1 AND r.status = 'pending' AND r.dispatches > 0
  ORDER BY r.run_id FOR NO KEY UPDATE SKIP LOCKED
) AS waiting
WHERE runs.run_id = waiting.run_id

-- name: next_lock_key
SELECT nextval('process_locks')::integer

-- name: take_lock
SELECT pg_try_advisory_lock(1346719297, $1::integer)

-- name: renew_lease
UPDATE processes SET lease_until = clock_timestamp() + $2 * interval '1 second'
WHERE process_id = $1 AND state = 'live'
RETURNING TRUE

-- name: relock_process
UPDATE processes SET postmaster_started = pg_postmaster_start_time(), lock_key = $2,
       lease_until = clock_timestamp() + $3 * interval '1 second'
WHERE process_id = $1 AND state = 'live'
RETURNING TRUE

-- name: leave_process
UPDATE processes SET state = 'gone' WHERE process_id = $1

-- name: claim
-- Raises the epoch: from this commit on no earlier holder's row is accepted. Attempts count the claims since the last
-- journal row (`requeue_lost` and `release` set them back); a claim of a draining or lost process finds nothing.
-- The first claim of a life gives the run its version: the newest that the process offers of its workflow; the first of
-- all gives it its shelf.
-- Runs of a queue are not for this claim (see queues.sql), nor is any of an agent whose own queue has limits. A run that
-- is suspected of taking its processes with it (two were lost, and it wrote no row) is claimed by itself: with $10.
WITH holder AS (
  SELECT process_id FROM processes WHERE process_id = $1 AND state = 'live' AND lease_until > clock_timestamp()
), offer AS (
  SELECT * FROM unnest($6::text[], $7::text[], $8::text[], $9::boolean[]) AS t (workflow, version, source_hash, newest)
), wanted AS (
  SELECT r.run_id, offer.version, offer.source_hash
  FROM runs AS r JOIN offer
    ON offer.workflow = r.workflow AND (offer.version = r.version OR (r.version IS NULL AND offer.newest)), holder
  WHERE r.run_id = ANY($2::text[]) AND r.agent_name IS NOT DISTINCT FROM $3 AND r.status IS NOT DISTINCT FROM 'pending'
    AND r.queue_name IS NULL AND (r.attempts > 1) = $10
    AND NOT EXISTS (
      SELECT 1 FROM queues AS q
      WHERE q.queue_name IN ($3, '*') AND num_nonnulls(q.concurrency, q.process_concurrency, q.rate_limit) > 0)
    AND (r.session_id IS NULL OR NOT EXISTS (
      SELECT 1 FROM runs AS earlier
      WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
        AND earlier.finished_at IS NULL AND earlier.turn < r.turn))
  ORDER BY r.run_id FOR NO KEY UPDATE OF r
)
UPDATE runs SET
  status = 'running', epoch = runs.epoch + 1, process_id = $1, wake_at = NULL, waiting_signals = NULL,
  waiting_children = NULL, started_at = COALESCE(runs.started_at, now()),
  config_hash = COALESCE(runs.config_hash, $4), config_revision = COALESCE(runs.config_revision, $5),
  version = wanted.version, source_hash = COALESCE(runs.source_hash, wanted.source_hash),
  attempts = runs.attempts + 1, dispatches = 0,
  shelf = CASE WHEN runs.epoch = 0 THEN (SELECT shelf_for($3)) ELSE runs.shelf END
FROM wanted WHERE runs.run_id = wanted.run_id
RETURNING runs.run_id, runs.epoch, runs.workflow, runs.version, runs.session_id, runs.parent_run_id, runs.trace,
          runs.task, runs.attempts, runs.config_revision, runs.config_hash, runs.cancel_reason, runs.started_at,
          runs.base_seq, runs.seq_floor, runs.queue_name

-- name: suspect
-- The next run of this agent that two processes were lost with, if it could be claimed now; and its queue, or ''.
SELECT found.run_id, found.turn, found.queue_name
FROM (
  SELECT r.run_id, r.turn, COALESCE(r.queue_name, CASE WHEN EXISTS (
      SELECT 1 FROM queues AS q
      WHERE q.queue_name IN ($1, '*') AND num_nonnulls(q.concurrency, q.process_concurrency, q.rate_limit) > 0
    ) THEN r.agent_name END, '') AS queue_name
  FROM runs AS r
  WHERE r.agent_name = $1 AND r.status = 'pending' AND r.attempts > 1 AND r.turn > $2
    AND EXISTS (
      SELECT 1 FROM unnest($3::text[], $4::text[]) AS offer (workflow, version)
      WHERE offer.workflow = r.workflow AND (r.version IS NULL OR offer.version = r.version))
    AND (r.session_id IS NULL OR NOT EXISTS (
      SELECT 1 FROM runs AS earlier
      WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
        AND earlier.finished_at IS NULL AND earlier.turn < r.turn))
) AS found
WHERE found.queue_name = '' OR COALESCE((SELECT room.free FROM queue_room(found.queue_name) AS room), 1) > 0
ORDER BY found.turn LIMIT 1

-- name: offered_elsewhere
-- Of the runs that a claim did not take: those whose version another process runs, and this one ($2) does not.
SELECT r.run_id FROM runs AS r
WHERE r.run_id = ANY($1::text[]) AND r.status = 'pending'
  AND EXISTS (
    SELECT 1 FROM processes AS p, unnest(p.workflows, p.versions) AS o (workflow, version)
    WHERE p.agent_name = r.agent_name AND p.state = 'live' AND p.lease_until > clock_timestamp()
      AND o.workflow = r.workflow AND (r.version IS NULL OR o.version = r.version))
  AND NOT EXISTS (
    SELECT 1 FROM processes AS p, unnest(p.workflows, p.versions) AS o (workflow, version)
    WHERE p.process_id = $2 AND o.workflow = r.workflow AND (r.version IS NULL OR o.version = r.version))

-- name: history
-- Read in a statement after the claim's: nothing can be added to these rows but by the new epoch. OFFSET 0 keeps it one
-- look into the index a run, whatever the statistics say of the size of a journal. The columns up to `epoch` are the
-- fields of `JournalRow`, in their order.
SELECT j.*, wanted.run_id
FROM unnest($1::text[], $2::bigint[]) AS wanted (run_id, base_seq) CROSS JOIN LATERAL (
  SELECT shelf FROM runs WHERE runs.run_id = wanted.run_id OFFSET 0
) AS place CROSS JOIN LATERAL (
  SELECT seq, path, kind, name, hash, outcome, result, error, attempt, due_at, signal_seq, config_revision,
         started_at, finished_at, epoch
  FROM journal WHERE journal.run_id = wanted.run_id AND journal.shelf = place.shelf AND seq > wanted.base_seq
  ORDER BY seq OFFSET 0
) AS j
ORDER BY wanted.run_id, j.seq

-- name: snapshots
SELECT hash, revision, values FROM config_snapshots WHERE agent_name = $1 AND hash = ANY($2::text[])

-- name: stand_on
-- Runs that were claimed for this process while another configuration was live in it, and that have not begun.
UPDATE runs SET config_hash = $3, config_revision = $4
FROM (
  SELECT r.run_id
  FROM (SELECT * FROM unnest($1::text[], $2::bigint[]) AS t (run_id, epoch) ORDER BY run_id COLLATE "C") AS fence
  CROSS JOIN LATERAL (
    SELECT run_id FROM runs
    WHERE run_id = fence.run_id AND epoch = fence.epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE
  ) AS r
) AS held
WHERE runs.run_id = held.run_id

-- name: keep_snapshot
INSERT INTO config_snapshots (agent_name, hash, revision, values) VALUES ($1, $2, $3, $4::json)
ON CONFLICT (agent_name, hash) DO NOTHING

-- name: flush
-- One commit for whatever all runs of a process have to say. `held` is the fence: it locks the runs whose epoch is
-- still the writer's, one after the other as they are given (sorted), and nothing is written for the others. A row names
-- its fence by its place in the list, from 1: one process may hold the rows of two lives of a run. A repeat after a lost
-- answer finds its own rows: (run_id, seq) is the key of each shelf, and the run's row, as it is locked, says which it is.
-- A column travels as one text, its values in lines: that is what the writer can put together quickest. An empty line of
-- results is NULL. Times are microseconds since 1970. The columns from `kind` on may be left empty: then every row is a
-- step that went well at its first attempt, which is what most are, and the shorter list is padded with NULL.
WITH held AS (
  SELECT r.run_id, r.epoch, r.shelf, r.process_id, fence.place
  FROM unnest(string_to_array($1, E'\n'), $2::text::bigint[]) WITH ORDINALITY AS fence (run_id, epoch, place)
  CROSS JOIN LATERAL (
    SELECT run_id, epoch, shelf, process_id FROM runs
    WHERE run_id = fence.run_id AND epoch = fence.epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE
  ) AS r
), written AS (
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, error, attempt, due_at, signal_seq,
                       config_revision, started_at, finished_at, epoch, shelf, process_id, input)
  SELECT held.run_id, seq, path, COALESCE(kind, 'step'), name, COALESCE(hash, ''), COALESCE(outcome, 'ok'),
         result::json, error::json, COALESCE(attempt, 1), due_at, signal_seq, config_revision,
         to_timestamp(started::float8 / 1000000), to_timestamp(finished::float8 / 1000000), held.epoch, held.shelf,
         CASE WHEN input.first THEN held.process_id END, input.arguments
  FROM unnest($3::text::integer[], $4::text::bigint[], string_to_array($5, E'\n'), string_to_array($6, E'\n'),
              string_to_array($7, E'\n'), string_to_array($8, E'\n', ''), $9::text::bigint[], $10::text::bigint[],
              $11::text::bigint[], $12::text[], $13::text[], $14::text[], $15::integer[], $16::timestamptz[],
              $17::bigint[], string_to_array($18, E'\n', ''), $19::text::boolean[])
    AS input (place, seq, path, name, hash, result, config_revision, started, finished,
              kind, outcome, error, attempt, due_at, signal_seq, arguments, first)
  JOIN held ON held.place = input.place
  ON CONFLICT DO NOTHING
)
SELECT run_id, epoch FROM held

-- name: consume_signals
UPDATE signals SET consumed = TRUE
FROM unnest($1::text[], $2::bigint[]) AS used (run_id, seq)
WHERE signals.run_id = used.run_id AND signals.seq = used.seq

-- name: give_back_signals
-- With `continue_as_new`: what came for waits that were over is there for the next life.
UPDATE signals SET consumed = FALSE
FROM unnest($1::text[], $2::bigint[]) AS unused (run_id, seq)
WHERE signals.run_id = unused.run_id AND signals.seq = unused.seq

-- name: move
-- The ends, the waits and the pauses. Only a run that is still running moves, so that a repeat never undoes a wake-up;
-- after a lost answer `moved_before` finds the run already there. One that was asked to pause goes nowhere else but to
-- an end. A column that says nothing may be left empty.
WITH input AS (
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
                       $8::text[], $9::bigint[], $10::text[], $11::bigint[])
    AS t (run_id, epoch, status, output, error, wake_at, waiting_signals, waiting_children, end_seq, task, base_seq)
), held AS (
  SELECT r.run_id, r.epoch
  FROM (SELECT run_id, epoch FROM input ORDER BY run_id COLLATE "C") AS fence CROSS JOIN LATERAL (
    SELECT run_id, epoch FROM runs
    WHERE run_id = fence.run_id AND epoch = fence.epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE
  ) AS r
), moved AS (
  UPDATE runs SET
    status = CASE WHEN runs.pause_asked AND m.status IN ('pending', 'waiting') THEN 'paused' ELSE m.status END, output = m.output::json, error = m.error::json, wake_at = m.wake_at,
    waiting_signals = string_to_array(m.waiting_signals, E'\n'),
    waiting_children = string_to_array(m.waiting_children, E'\n'),
    task = COALESCE(m.task::json, runs.task), end_seq = m.end_seq, base_seq = COALESCE(m.base_seq, runs.base_seq),
    config_hash = CASE WHEN m.task IS NULL THEN runs.config_hash END,
    config_revision = CASE WHEN m.task IS NULL THEN runs.config_revision END,
    version = CASE WHEN m.task IS NULL THEN runs.version END,
    source_hash = CASE WHEN m.task IS NULL THEN runs.source_hash END,
    attempts = CASE WHEN m.status IN ('pending', 'waiting', 'paused') THEN 0 ELSE runs.attempts END,
    dispatched_at = CASE WHEN m.status = 'pending' THEN now() ELSE runs.dispatched_at END,
    process_id = CASE WHEN m.status IN ('pending', 'waiting', 'paused') THEN NULL ELSE runs.process_id END,
    started_at = CASE WHEN m.task IS NULL THEN runs.started_at END,
    fair_rank = CASE WHEN m.task IS NULL THEN runs.fair_rank ELSE 0 END,
    finished_at = CASE WHEN m.status IN ('completed', 'failed', 'cancelled', 'dead') THEN now() END
  FROM input AS m JOIN held USING (run_id, epoch)
  WHERE runs.run_id = m.run_id
  RETURNING runs.run_id, runs.epoch, runs.joined, runs.status
)
SELECT run_id, epoch, joined, status FROM moved

-- name: moved_before
-- After a lost answer: whether the first try was there before the second looked (its commit may have come after the
-- second's snapshot was taken).
SELECT r.run_id, r.epoch, r.joined
FROM runs AS r JOIN unnest($1::text[], $2::bigint[], $3::text[]) AS m (run_id, epoch, status)
  ON r.run_id = m.run_id AND r.epoch = m.epoch AND r.status = m.status

-- name: lock_joined
-- A child with another parent does not lock this parent's row when it ends: its own row is locked instead.
SELECT 1 FROM runs WHERE run_id = ANY($1::text[]) AND joined AND finished_at IS NULL ORDER BY run_id FOR SHARE

-- name: join_children
-- These runs were there already when a workflow called them: somebody beside their parent waits for their end.
UPDATE runs SET joined = TRUE
FROM (
  SELECT run_id FROM runs WHERE run_id = ANY($1::text[]) AND NOT joined ORDER BY run_id FOR NO KEY UPDATE
) AS there
WHERE runs.run_id = there.run_id

-- name: recheck_waits
-- In the transaction that made them wait, in a later statement: what was committed between the last look and the lock
-- wakes them here, and whoever comes later finds them waiting.
UPDATE runs SET status = 'pending', wake_at = NULL, dispatched_at = now()
FROM (
  SELECT r.run_id FROM runs AS r
  WHERE r.run_id = ANY($1::text[]) AND CASE r.status
    WHEN 'waiting' THEN
      (r.cancel_reason IS NOT NULL AND NOT EXISTS (  -- a run that has heard of it may wait while it tidies up
        SELECT 1 FROM journal AS j
        WHERE j.run_id = r.run_id AND j.shelf = r.shelf AND j.seq > r.base_seq AND j.kind = 'cancel'))
      OR EXISTS (SELECT 1 FROM signals AS s
                 WHERE s.run_id = r.run_id AND NOT s.consumed AND s.name = ANY(r.waiting_signals))
      OR EXISTS (SELECT 1 FROM runs AS c WHERE c.run_id = ANY(r.waiting_children) AND c.finished_at IS NOT NULL)
    WHEN 'paused' THEN NOT r.pause_asked  -- resumed or, which takes that back, too, cancelled
    END
  ORDER BY r.run_id FOR NO KEY UPDATE OF r
) AS due
WHERE runs.run_id = due.run_id AND (runs.status IN ('waiting', 'paused')) IS NOT FALSE
RETURNING runs.run_id, runs.agent_name

-- name: unconsumed_signals
SELECT run_id, seq, name, payload FROM signals WHERE run_id = ANY($1::text[]) AND NOT consumed ORDER BY seq

-- name: children
SELECT run_id, status, output, error, task_hash, finished_at IS NOT NULL AS ended FROM runs WHERE run_id = ANY($1::text[])

-- name: tell_parents
-- Ended children wake the parents that wait for them; the children are marked in the same commit.
-- Whether a parent waits is read from the row as it was locked, never from the statement's snapshot.
WITH concerned AS (
  SELECT c.parent_run_id AS run_id FROM runs AS c WHERE c.run_id = ANY($1::text[]) AND c.parent_run_id IS NOT NULL
  UNION
  SELECT p.run_id FROM runs AS p WHERE p.status = 'waiting' AND p.waiting_children && $1::text[]
), parent AS (
  SELECT p.run_id, p.agent_name, p.status, p.process_id, p.waiting_children
  FROM runs AS p JOIN concerned USING (run_id)
  ORDER BY p.run_id FOR NO KEY UPDATE OF p
), woken AS (
  UPDATE runs SET status = 'pending', wake_at = NULL, dispatched_at = now()
  FROM parent
  WHERE runs.run_id = parent.run_id AND parent.status = 'waiting' AND parent.waiting_children && $1::text[]
  RETURNING runs.run_id
), told AS (
  UPDATE runs SET parent_notified = TRUE WHERE runs.run_id = ANY($1::text[])
)
SELECT parent.run_id, parent.agent_name, parent.process_id, parent.status = 'running' AS running,
       parent.run_id IN (SELECT run_id FROM woken) AS woken
FROM parent

-- name: untold_children
SELECT run_id FROM runs
WHERE (parent_run_id IS NOT NULL OR joined) AND NOT parent_notified AND finished_at IS NOT NULL AND finished_at < $1
ORDER BY finished_at LIMIT $2

-- name: abandoned_children
-- Children whose parent was cancelled, and who were not reached: whoever cancelled it died in between.
SELECT c.run_id, c.parent_run_id FROM runs AS c JOIN runs AS p ON p.run_id = c.parent_run_id
WHERE c.parent_run_id IS NOT NULL AND c.finished_at IS NULL AND c.cancel_reason IS NULL AND NOT c.joined
  AND p.status = 'cancelled' AND p.finished_at < $1
ORDER BY c.run_id LIMIT $2

-- name: release
-- A drain gives runs back: the attempt does not count, the epoch rises so that no late row is accepted.
UPDATE runs SET status = CASE WHEN runs.pause_asked THEN 'paused' ELSE 'pending' END, epoch = runs.epoch + 1,
       attempts = mine.attempts, process_id = NULL, dispatched_at = now()
FROM (
  SELECT r.run_id, CASE WHEN r.epoch = (
      SELECT j.epoch FROM journal AS j WHERE j.run_id = r.run_id AND j.shelf = r.shelf ORDER BY j.seq DESC LIMIT 1)
    THEN 0 ELSE GREATEST(r.attempts - 1, 0) END AS attempts
  FROM (
    SELECT * FROM unnest($1::text[], $2::bigint[]) AS t (run_id, epoch) ORDER BY run_id COLLATE "C"
  ) AS fence CROSS JOIN LATERAL (
    SELECT run_id, epoch, attempts, shelf FROM runs
    WHERE run_id = fence.run_id AND epoch = fence.epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE
  ) AS r
) AS mine
WHERE runs.run_id = mine.run_id
RETURNING runs.run_id, runs.agent_name

-- name: lost_processes
-- A lock that is gone tells of a dead process within milliseconds; a lock taken under an earlier server start says
-- nothing, then only the lease counts, and after a start of the server each lease has its whole length ($2) again.
SELECT p.process_id, p.agent_name, p.instance_id, p.lease_until, p.lease_until < clock_timestamp() AS lease_over FROM processes AS p
WHERE p.state = 'live' AND (
  ($1 AND p.lease_until < clock_timestamp()
    AND clock_timestamp() > pg_postmaster_start_time() + $2 * interval '1 second')
  OR (p.postmaster_started = pg_postmaster_start_time() AND NOT EXISTS (
    SELECT 1 FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.classid = 1346719297 AND l.objid = p.lock_key::oid
      AND l.objsubid = 2 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))))

-- name: bury_process
-- It may have died between the commit of an end and its event: those since $2 are looked at again.
WITH buried AS (
  UPDATE processes SET state = 'lost' WHERE process_id = $1 AND state = 'live' RETURNING process_id
), ended AS (
  SELECT r.run_id FROM runs AS r, buried
  WHERE r.finished_at >= $2 AND r.process_id = buried.process_id
  ORDER BY r.run_id FOR NO KEY UPDATE OF r
), doubted AS (
  UPDATE runs SET untold = TRUE FROM ended WHERE runs.run_id = ended.run_id
)
SELECT TRUE FROM buried

-- name: requeue_lost
-- The epoch rises here already: whatever the lost process still sends is refused from this commit on. A run that
-- wrote a row under this claim begins to count anew.
UPDATE runs SET
  status = CASE WHEN held.attempts >= $2 THEN 'dead' WHEN runs.pause_asked THEN 'paused' ELSE 'pending' END,
  epoch = runs.epoch + 1, process_id = NULL, dispatched_at = now(), attempts = held.attempts,
  finished_at = CASE WHEN held.attempts >= $2 THEN now() END, untold = held.attempts >= $2,
  end_seq = CASE WHEN held.attempts >= $2
    THEN 1 + GREATEST(runs.seq_floor, runs.base_seq, COALESCE((
      SELECT max(seq) FROM journal WHERE journal.run_id = runs.run_id AND journal.shelf = runs.shelf), 0)) END,
  error = CASE WHEN held.attempts >= $2 THEN json_build_object('type', 'LostProcess', 'message',
    format('its process was lost %s times in a row without a new journal row', held.attempts)) END
FROM (
  SELECT r.run_id, CASE WHEN r.epoch = (
      SELECT j.epoch FROM journal AS j WHERE j.run_id = r.run_id AND j.shelf = r.shelf ORDER BY j.seq DESC LIMIT 1)
    THEN 0 ELSE r.attempts END AS attempts
  FROM runs AS r WHERE r.process_id = $1 AND r.status = 'running'
  ORDER BY r.run_id LIMIT $3 FOR NO KEY UPDATE
) AS held
WHERE runs.run_id = held.run_id
RETURNING runs.run_id, runs.agent_name, runs.status, runs.end_seq, runs.error, runs.parent_run_id, runs.joined

-- name: held_by_lost
SELECT DISTINCT r.process_id FROM runs AS r
LEFT JOIN processes AS p ON p.process_id = r.process_id
WHERE r.status = 'running' AND (p.process_id IS NULL OR p.state <> 'live')

-- name: due_timers
-- The runs are named by an array, not joined: a plan from when there were few would compare each with all of them.
UPDATE runs SET status = 'pending', wake_at = NULL, dispatched_at = clock_timestamp()
WHERE runs.status IS NOT DISTINCT FROM 'waiting' AND runs.run_id = ANY(ARRAY(
  SELECT r.run_id FROM runs AS r WHERE r.status = 'waiting' AND r.wake_at <= $1
  ORDER BY r.wake_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING runs.run_id, runs.agent_name, runs.queue_name IS NOT NULL AND runs.started_at IS NULL AS unplaced

-- name: next_timer
SELECT min(wake_at) AS wake_at FROM runs WHERE status = 'waiting' AND wake_at IS NOT NULL

-- name: stale_pending
-- The work outbox: a pending run whose wake-up may have been lost is dispatched again, each time after twice as long (a
-- minute at most), so that the runs of an agent that is down do not fill the stream; and never before the agent can have
-- read what stands in the stream for it ($3, $4: agents and seconds). A run that stands behind an earlier turn of its
-- session is left alone, and so is one of a queue: its queue wakes it (block `look`).
UPDATE runs SET dispatched_at = clock_timestamp(), dispatches = LEAST(runs.dispatches + 1, 30)
WHERE runs.status IS NOT DISTINCT FROM 'pending' AND runs.run_id = ANY(ARRAY(
  SELECT r.run_id FROM runs AS r
  WHERE r.status = 'pending' AND r.queue_name IS NULL
    AND r.dispatched_at <= clock_timestamp() - $1 * interval '1 second'
    AND r.dispatched_at <= clock_timestamp()
        - LEAST($1 * power(2, r.dispatches), GREATEST($1, 60.0)) * interval '1 second'
    AND NOT EXISTS (
      SELECT 1 FROM unnest($3::text[], $4::double precision[]) AS line (agent_name, seconds)
      WHERE line.agent_name = r.agent_name
        AND r.dispatched_at > clock_timestamp() - line.seconds * interval '1 second')
    AND (r.session_id IS NULL OR NOT EXISTS (
      SELECT 1 FROM runs AS earlier
      WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
        AND earlier.finished_at IS NULL AND earlier.turn < r.turn))
  ORDER BY r.dispatched_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING runs.run_id, runs.agent_name

-- name: next_turns
-- The first waiting turn of each session in which a turn has just ended.
SELECT DISTINCT r.run_id, ended.agent_name
FROM unnest($1::text[], $2::text[]) AS ended (agent_name, session_id) CROSS JOIN LATERAL (
  SELECT run_id FROM runs
  WHERE agent_name = ended.agent_name AND session_id = ended.session_id AND finished_at IS NULL
  ORDER BY turn LIMIT 1
) AS r

-- name: lock_run
SELECT 1 FROM runs WHERE run_id = $1 FOR NO KEY UPDATE

-- name: has_row
SELECT EXISTS (
  SELECT 1 FROM journal
  WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1) AND seq = $2 AND epoch = $3)

-- name: row_result
SELECT result FROM journal
WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1) AND seq = $2 AND epoch = $3

-- name: held
SELECT run_id, epoch FROM runs WHERE process_id = $1 AND status = 'running'

-- name: asked_for
-- What somebody asked of runs that a process has in memory: to end, to pause; or they are another's by now.
SELECT run_id, epoch, cancel_reason, pause_asked, status = 'running' AS running FROM runs
WHERE run_id = ANY($1::text[]) AND (cancel_reason IS NOT NULL OR pause_asked OR status <> 'running')

-- name: unfinished
-- Runs of these agents that are not at rest, for tests that wait until they are.
SELECT run_id, status FROM runs WHERE agent_name = ANY($1::text[]) AND status IN ('pending', 'running')

-- name: due_before
SELECT min(wake_at) FROM runs WHERE status = 'waiting' AND wake_at <= $1

-- name: executed_by
SELECT process_id FROM processes WHERE agent_name = $1 AND state = 'live'
