-- Retention: shelves of the journal are made ahead and dropped, runs that ended long ago are forgotten. See
-- migrations/0043_retention.sql. Any number of schedulers may do all of it at once: pages are locked with SKIP LOCKED.

-- name: set_default
INSERT INTO retention (agent_name, days) VALUES ('', $1)
ON CONFLICT (agent_name) DO UPDATE SET days = excluded.days WHERE retention.days <> excluded.days

-- name: make_shelves
-- For each class in use the shelf of today and the next one. A shelf holds what begins within an eighth of its class, a
-- day at least; its borders are the same for whoever computes them.
SELECT make_shelf(wanted.class, wanted.begins_at, wanted.begins_at + wanted.span)
FROM (
  SELECT c.class, c.span,
         date_bin(c.span, now(), timestamptz '2020-01-01 00:00:00Z') + nth * c.span AS begins_at
  FROM (SELECT DISTINCT class, ceil(class / 8.0) * interval '1 day' AS span FROM retention WHERE days > 0) AS c, generate_series(0, 1) AS nth
) AS wanted
WHERE NOT EXISTS (
  SELECT FROM journal_shelves AS s WHERE s.keep_days = wanted.class AND s.begins_at = wanted.begins_at)
ORDER BY wanted.class, wanted.begins_at

-- name: due_shelves
SELECT shelf FROM journal_shelves WHERE ends_at + keep_days * interval '1 day' <= now() ORDER BY ends_at

-- name: lock_shelf
-- Some of the runs that still stand on a shelf; those that somebody works on are seen later.
SELECT run_id FROM runs WHERE shelf = $1 AND shelf > 0
ORDER BY agent_name, finished_at LIMIT $2 FOR UPDATE SKIP LOCKED

-- name: strays
-- Agents with runs that no partition will take along when they are to be forgotten: on shelf 0, or on one that is kept
-- for longer than the agent's setting says now.
WITH RECURSIVE place AS (
  (SELECT shelf, agent_name FROM runs WHERE shelf > 0 OR finished_at IS NOT NULL ORDER BY shelf, agent_name LIMIT 1)
  UNION ALL
  SELECT next.shelf, next.agent_name FROM place CROSS JOIN LATERAL (
    SELECT r.shelf, r.agent_name FROM runs AS r
    WHERE (r.shelf > 0 OR r.finished_at IS NOT NULL) AND (r.shelf, r.agent_name) > (place.shelf, place.agent_name)
    ORDER BY r.shelf, r.agent_name LIMIT 1) AS next
)
SELECT place.shelf, place.agent_name, kept.days
FROM place CROSS JOIN LATERAL (SELECT retention_days(place.agent_name) AS days OFFSET 0) AS kept
LEFT JOIN journal_shelves AS s ON s.shelf = place.shelf
WHERE kept.days > 0 AND (place.shelf = 0 OR s.keep_days > retention_class(kept.days))

-- name: lock_strays
SELECT r.run_id FROM runs AS r
WHERE r.shelf = $1 AND r.agent_name = $2 AND r.finished_at IS NOT NULL
  AND r.finished_at < now() - $3 * interval '1 day' AND may_forget(r)
ORDER BY r.finished_at LIMIT $4 FOR UPDATE SKIP LOCKED

-- name: forget
-- In a statement after the one that locked them. With $2 their journals go, too; else their partition takes them along.
WITH gone AS (
  DELETE FROM runs AS r
  WHERE r.run_id = ANY($1::text[]) AND retention_days(r.agent_name) > 0
    AND r.finished_at < now() - retention_days(r.agent_name) * interval '1 day' AND may_forget(r)
  RETURNING r.run_id, r.shelf
), rows AS (
  DELETE FROM journal AS j USING gone WHERE $2 AND j.run_id = gone.run_id AND j.shelf = gone.shelf
), signals AS (
  DELETE FROM signals AS s USING gone WHERE s.run_id = gone.run_id
), callbacks AS (
  DELETE FROM callbacks AS c USING gone WHERE c.run_id = gone.run_id
), pushes AS (
  DELETE FROM push_configs AS p USING gone WHERE p.run_id = gone.run_id
), approvals AS (
  DELETE FROM approvals AS a USING gone WHERE a.run_id = gone.run_id
), tools AS (
  DELETE FROM tool_starts AS t USING gone WHERE t.run_id = gone.run_id
), uses AS (
  DELETE FROM payload_uses AS u USING gone WHERE u.run_id = gone.run_id
)
SELECT run_id FROM gone

-- name: move_out
-- The others move to the shelf of today, with the rows of their present life. They were locked in an earlier statement:
-- no row can be missing here, and whoever writes one next finds the new shelf in the run's row.
WITH leaving AS (
  SELECT run_id, shelf, base_seq, shelf_for(agent_name) AS target FROM runs WHERE run_id = ANY($1::text[])
), copied AS (
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, error, attempt, due_at, signal_seq, epoch,
                       config_revision, started_at, finished_at, process_id, input, shelf)
  SELECT j.run_id, j.seq, j.path, j.kind, j.name, j.hash, j.outcome, j.result, j.error, j.attempt, j.due_at,
         j.signal_seq, j.epoch, j.config_revision, j.started_at, j.finished_at, j.process_id, j.input, leaving.target
  FROM leaving JOIN journal AS j ON j.run_id = leaving.run_id AND j.shelf = leaving.shelf AND j.seq > leaving.base_seq
  WHERE leaving.target <> leaving.shelf
)
UPDATE runs SET shelf = leaving.target FROM leaving
WHERE runs.run_id = leaving.run_id AND leaving.target <> leaving.shelf

-- name: drop_shelf
SELECT drop_shelf($1)
