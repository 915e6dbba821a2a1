-- Queues: which of the runs that could go on may. See migrations/0015_queues.sql for the order and the bounds.

-- name: accept_queued
-- Starts that say more than a task: in which queue, how early, for whom, not before when. A run that may not begin yet
-- waits, and its timer wakes it. Runs of one `fair_key` get ranks one after the other, beginning where the queue stands:
-- so keys take turns, however many runs one of them has.
WITH input AS (
  SELECT *, row_number() OVER (PARTITION BY queue_name, priority, fair_key ORDER BY at) - 1 AS nth
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
              $9::text[], $10::text[], $11::integer[], $12::text[], $13::timestamptz[]) WITH ORDINALITY
    AS input (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path, trace,
              queue_name, priority, fair_key, wake_at, at)
), named AS (
  INSERT INTO queues (queue_name) SELECT DISTINCT queue_name FROM input WHERE queue_name IS NOT NULL
  ON CONFLICT DO NOTHING
), places AS (
  SELECT p.queue_name, p.priority, p.fair_key,
         GREATEST(COALESCE(last.fair_rank + 1, 0), COALESCE(head.fair_rank, 0)) AS first_rank
  FROM (SELECT DISTINCT queue_name, priority, fair_key FROM input) AS p
  LEFT JOIN LATERAL (
    SELECT r.fair_rank FROM runs AS r
    WHERE r.queue_name = p.queue_name AND r.priority = p.priority AND r.fair_key = p.fair_key
      AND r.status = 'pending' AND r.started_at IS NULL
    ORDER BY r.fair_rank DESC LIMIT 1) AS last ON TRUE
  LEFT JOIN LATERAL (
    SELECT r.fair_rank FROM runs AS r
    WHERE r.queue_name = p.queue_name AND r.priority = p.priority AND r.status = 'pending' AND r.started_at IS NULL
    ORDER BY r.fair_rank LIMIT 1) AS head ON TRUE
)
INSERT INTO runs (run_id, agent_name, workflow, session_id, task, task_hash, parent_run_id, parent_path, trace,
                  queue_name, priority, fair_key, fair_rank, status, wake_at)
SELECT i.run_id, i.agent_name, i.workflow, i.session_id, i.task::json, i.task_hash, i.parent_run_id, i.parent_path,
       i.trace, i.queue_name, i.priority, i.fair_key, COALESCE(places.first_rank + i.nth, 0),
       CASE WHEN i.wake_at IS NULL THEN 'pending' ELSE 'waiting' END, i.wake_at
FROM input AS i LEFT JOIN places USING (queue_name, priority, fair_key)
ORDER BY i.at
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id

-- name: place
-- Pending runs get their place in the line: those whose delay is over, and those of an agent that came to have a queue
-- with limits after they were accepted ($2).
WITH here AS (
  SELECT r.run_id, COALESCE(r.queue_name, r.agent_name) AS queue_name, r.priority, COALESCE(r.fair_key, '') AS fair_key,
         row_number() OVER (
           PARTITION BY COALESCE(r.queue_name, r.agent_name), r.priority, r.fair_key ORDER BY r.turn) - 1 AS nth
  FROM runs AS r
  WHERE r.run_id = ANY($1::text[]) AND r.status = 'pending' AND (r.queue_name IS NOT NULL OR $2)
), named AS (
  INSERT INTO queues (queue_name) SELECT DISTINCT queue_name FROM here ON CONFLICT DO NOTHING
), places AS (
  SELECT p.queue_name, p.priority, p.fair_key,
         GREATEST(COALESCE(last.fair_rank + 1, 0), COALESCE(head.fair_rank, 0)) AS first_rank
  FROM (SELECT DISTINCT queue_name, priority, fair_key FROM here) AS p
  LEFT JOIN LATERAL (
    SELECT r.fair_rank FROM runs AS r
    WHERE r.queue_name = p.queue_name AND r.priority = p.priority AND r.fair_key = p.fair_key
      AND r.status = 'pending' AND r.started_at IS NULL AND r.run_id <> ALL($1::text[])
    ORDER BY r.fair_rank DESC LIMIT 1) AS last ON TRUE
  LEFT JOIN LATERAL (
    SELECT r.fair_rank FROM runs AS r
    WHERE r.queue_name = p.queue_name AND r.priority = p.priority AND r.status = 'pending' AND r.started_at IS NULL
      AND r.run_id <> ALL($1::text[])
    ORDER BY r.fair_rank LIMIT 1) AS head ON TRUE
), locked AS (
  SELECT r.run_id FROM runs AS r JOIN here USING (run_id)
  WHERE r.status = 'pending' ORDER BY r.run_id FOR NO KEY UPDATE OF r
)
UPDATE runs SET queue_name = here.queue_name, fair_key = here.fair_key, fair_rank = places.first_rank + here.nth
FROM locked JOIN here USING (run_id) JOIN places USING (queue_name, priority, fair_key)
WHERE runs.run_id = locked.run_id

-- name: missed
-- Of the runs that a claim did not take: in which queue each stands. Those without one stand in their agent's own when
-- that has limits now.
SELECT r.run_id, COALESCE(r.queue_name, r.agent_name) AS queue_name, r.queue_name IS NULL AS unplaced
FROM runs AS r
WHERE r.run_id = ANY($1::text[]) AND r.agent_name = $2 AND r.status = 'pending'
  AND (r.queue_name IS NOT NULL OR EXISTS (
    SELECT 1 FROM queues AS q
    WHERE q.queue_name IN ($2, '*') AND num_nonnulls(q.concurrency, q.process_concurrency, q.rate_limit) > 0))

-- name: lock_queue
-- Whoever claims from a queue holds it until the commit: counts are taken in a later statement.
SELECT 1 FROM queues WHERE queue_name = $1 FOR NO KEY UPDATE

-- name: claim_queued
-- The claim of `engine.sql` for a queue: the process is given as many of the next runs as the queue's bounds, its own
-- bound and its slots leave open.
WITH holder AS (
  SELECT process_id FROM processes WHERE process_id = $1 AND state = 'live' AND lease_until > clock_timestamp()
), offer AS (
  SELECT * FROM unnest($7::text[], $8::text[], $9::text[], $10::boolean[]) AS t (workflow, version, source_hash, newest)
), room AS (
  SELECT LEAST(q.free, 500) AS places, q.tokens, q.rate_limit, q.rate_period,
         LEAST(GREATEST(q.process_concurrency - (
           SELECT count(*) FROM runs AS r WHERE r.queue_name = $2 AND r.process_id = $1 AND r.status = 'running'
         ), CASE WHEN q.process_concurrency IS NULL THEN NULL ELSE 0 END), $4::bigint) AS here,
         CASE WHEN q.concurrency IS NULL AND q.rate_limit IS NULL THEN $3::text END AS only_agent
  FROM queue_room($2) AS q
), line AS (
  SELECT l.* FROM room, queue_line($2, room.places, room.tokens, room.only_agent) AS l
), wanted AS (
  SELECT line.nth, line.begun, r.run_id, offer.version, offer.source_hash
  FROM line JOIN runs AS r USING (run_id) JOIN offer
    ON offer.workflow = r.workflow AND (offer.version = r.version OR (r.version IS NULL AND offer.newest)), holder
  WHERE line.agent_name = $3 AND r.status = 'pending' AND (r.attempts > 1) = $11
  ORDER BY line.nth LIMIT (SELECT here FROM room) FOR NO KEY UPDATE OF r SKIP LOCKED
), taken AS (
  UPDATE runs SET
    status = 'running', epoch = runs.epoch + 1, process_id = $1, wake_at = NULL, waiting_signals = NULL,
    waiting_children = NULL, started_at = COALESCE(runs.started_at, statement_timestamp()),
    config_hash = COALESCE(runs.config_hash, $5), config_revision = COALESCE(runs.config_revision, $6),
    version = wanted.version, source_hash = COALESCE(runs.source_hash, wanted.source_hash),
    attempts = runs.attempts + 1, dispatches = 0,
    shelf = CASE WHEN runs.epoch = 0 THEN (SELECT shelf_for($3)) ELSE runs.shelf END
  FROM wanted WHERE runs.run_id = wanted.run_id
  RETURNING wanted.nth, wanted.begun, runs.run_id, runs.epoch, runs.workflow, runs.version, runs.session_id,
            runs.parent_run_id, runs.trace, runs.task, runs.attempts, runs.config_revision, runs.config_hash,
            runs.cancel_reason, runs.started_at, runs.base_seq, runs.seq_floor, runs.queue_name
), counted AS (
  INSERT INTO queue_starts (queue_name, started_at)
  SELECT $2, statement_timestamp() FROM taken, room WHERE NOT taken.begun AND room.rate_limit IS NOT NULL
), forgotten AS (
  DELETE FROM queue_starts AS s
  WHERE s.queue_name = $2
    AND s.started_at <= statement_timestamp() - (SELECT rate_period FROM room) * interval '1 second'
)
SELECT * FROM taken ORDER BY nth

-- name: look
-- Queues in which runs could go on now, and the processes that have a place for them: one row a process, with one of
-- the runs that concern it. With $1, one queue alone. (The heads are asked for in their order, so that a queue without
-- any is found empty in its index and not by reading every run.)
SELECT p.process_id, min(l.run_id) AS run_id
FROM queues AS q
CROSS JOIN LATERAL (
  SELECT 1 FROM (
    (SELECT 1 FROM runs AS r
     WHERE r.queue_name = q.queue_name AND r.status = 'pending' AND r.started_at IS NULL
     ORDER BY r.priority DESC, r.fair_rank, r.turn LIMIT 1)
    UNION ALL
    (SELECT 1 FROM runs AS r
     WHERE r.queue_name = q.queue_name AND r.status = 'pending' AND r.started_at IS NOT NULL
     ORDER BY r.priority DESC, r.fair_rank, r.turn LIMIT 1)) AS either
  LIMIT 1) AS busy
CROSS JOIN LATERAL queue_room(q.queue_name) AS room
CROSS JOIN LATERAL queue_line(q.queue_name, LEAST(room.free, 50), room.tokens, NULL) AS l
JOIN processes AS p ON p.agent_name = l.agent_name AND p.state = 'live' AND p.lease_until > clock_timestamp()
WHERE ($1::text IS NULL OR q.queue_name = $1)
  AND (room.process_concurrency IS NULL OR room.process_concurrency > (
    SELECT count(*) FROM runs AS h
    WHERE h.queue_name = q.queue_name AND h.process_id = p.process_id AND h.status = 'running'))
GROUP BY p.process_id, q.queue_name

-- name: lock_key
-- Whoever decides about a key holds its row until the commit; who else holds it is seen in a later statement.
INSERT INTO start_keys AS k (agent_name, kind, start_key, run_id, until, look_at)
VALUES ($1, $2, $3, $4, $5::timestamptz, COALESCE($5::timestamptz, $6::timestamptz + interval '1 hour'))
ON CONFLICT (agent_name, kind, start_key) DO UPDATE SET look_at = k.look_at

-- name: take_dedup_key
-- The key is this run's when whoever held it has let go: its time is over, or it is.
UPDATE start_keys AS k SET run_id = $3, until = $4::timestamptz,
       look_at = COALESCE($4::timestamptz, $5::timestamptz + interval '1 hour')
WHERE k.agent_name = $1 AND k.kind = 'dedup' AND k.start_key = $2 AND k.run_id <> $3
  AND (k.until <= $5::timestamptz OR (k.until IS NULL AND NOT EXISTS (
    SELECT 1 FROM runs AS r WHERE r.run_id = k.run_id AND r.finished_at IS NULL)))

-- name: holder
SELECT run_id FROM start_keys WHERE agent_name = $1 AND kind = 'dedup' AND start_key = $2

-- name: debounce_holder
SELECT run_id FROM start_keys WHERE agent_name = $1 AND kind = 'debounce' AND start_key = $2

-- name: debounce
-- The run that waits under the key takes the newest task and waits on, up to the time that its first start has set.
UPDATE runs SET task = $3::json, task_hash = $4, wake_at = LEAST($5, k.until)
FROM start_keys AS k
WHERE k.agent_name = $1 AND k.kind = 'debounce' AND k.start_key = $2
  AND runs.run_id = k.run_id AND runs.agent_name = $1 AND runs.status = 'waiting' AND runs.epoch = 0
RETURNING runs.run_id

-- name: hold_debounce_key
UPDATE start_keys SET run_id = $3, until = $4, look_at = $4
WHERE agent_name = $1 AND kind = 'debounce' AND start_key = $2

-- name: forget_keys
-- Keys that nobody needs any more; one whose run is not over is looked at again in an hour.
WITH old AS (
  SELECT k.agent_name, k.kind, k.start_key, EXISTS (
    SELECT 1 FROM runs AS r WHERE r.run_id = k.run_id AND r.finished_at IS NULL
      AND (k.kind = 'debounce' OR k.until IS NULL)) AS needed
  FROM start_keys AS k WHERE k.look_at <= $1::timestamptz ORDER BY k.look_at LIMIT $2 FOR UPDATE SKIP LOCKED
), kept AS (
  UPDATE start_keys AS k SET look_at = $1::timestamptz + interval '1 hour'
  FROM old WHERE old.needed AND (k.agent_name, k.kind, k.start_key) = (old.agent_name, old.kind, old.start_key)
)
DELETE FROM start_keys AS k USING old
WHERE NOT old.needed AND (k.agent_name, k.kind, k.start_key) = (old.agent_name, old.kind, old.start_key)

-- name: list_queues
SELECT q.queue_name, waiting.pending, later.delayed, room.running, room.begun, room.concurrency,
       room.process_concurrency, room.rate_limit, room.rate_period, room.free, room.tokens,
       CASE WHEN room.tokens = 0 AND room.rate_limit > 0 THEN (
         SELECT s.started_at + room.rate_period * interval '1 second' FROM queue_starts AS s
         WHERE s.queue_name = q.queue_name ORDER BY s.started_at DESC OFFSET room.rate_limit - 1 LIMIT 1
       ) END AS next_start_at,
       (SELECT array_agg(c.config_key ORDER BY c.config_key) FROM agent_configurations AS c
        WHERE c.agent_name = q.queue_name AND c.is_active AND lower(trim(c.config_value)) <> 'null'
          AND c.config_key IN ('queue_concurrency', 'queue_process_concurrency', 'queue_rate_limit',
                               'queue_rate_period_seconds')
          AND queue_setting(c.config_key, c.config_value) IS NULL) AS held
FROM queues AS q
CROSS JOIN LATERAL queue_room(q.queue_name) AS room
CROSS JOIN LATERAL (
  SELECT (SELECT count(*) FROM runs AS r
          WHERE r.queue_name = q.queue_name AND r.status = 'pending' AND r.started_at IS NULL)
       + (SELECT count(*) FROM runs AS r
          WHERE r.queue_name = q.queue_name AND r.status = 'pending' AND r.started_at IS NOT NULL) AS pending
) AS waiting
CROSS JOIN LATERAL (
  SELECT count(*) AS delayed FROM runs AS r
  WHERE r.queue_name = q.queue_name AND r.status = 'waiting' AND r.started_at IS NULL) AS later
WHERE ($1::text IS NULL AND q.queue_name <> '*') OR q.queue_name = $1
ORDER BY q.queue_name
LIMIT 1000
