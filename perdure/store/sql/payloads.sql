-- Values kept by reference. Whoever puts one holds its row until his commit, so that it cannot be deleted meanwhile.

-- name: put
-- Those that have no body here: it is to stand elsewhere.
WITH stored AS (
  INSERT INTO payloads (hash, size, body, elsewhere)
  SELECT hash, size, body, body IS NULL
  FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS t (hash, size, body) ORDER BY hash
  ON CONFLICT (hash) DO UPDATE SET
    used_at = now(), body = COALESCE(payloads.body, EXCLUDED.body), elsewhere = payloads.elsewhere OR EXCLUDED.elsewhere
  RETURNING hash, body IS NULL AS without
), used AS (
  INSERT INTO payload_uses (run_id, hash)
  SELECT run_id, hash FROM unnest($4::text[], $5::text[]) AS t (run_id, hash) ORDER BY run_id, hash
  ON CONFLICT (run_id, hash) DO UPDATE SET used_at = now()
)
SELECT hash FROM stored WHERE without

-- name: adopt
-- Rows for objects ($1: hashes) that have none, as whoever put them did not commit; so old ($2, seconds) that they go next.
INSERT INTO payloads (hash, size, elsewhere, used_at)
SELECT hash, 0, TRUE, now() - $2 * interval '1 second' FROM unnest($1::text[]) AS t (hash) ORDER BY hash
ON CONFLICT (hash) DO NOTHING

-- name: read
SELECT hash, body FROM payloads WHERE hash = ANY($1::text[])

-- name: share
-- What one run uses ($1), another ($2) uses, too: it is a copy.
INSERT INTO payload_uses (run_id, hash) SELECT $2, hash FROM payload_uses WHERE run_id = $1 ORDER BY hash
ON CONFLICT (run_id, hash) DO UPDATE SET used_at = now()

-- name: copied_values
-- The values of a copied run ($1) that are not plain; with $2 only sealed ones: references need no change then.
SELECT NULL::bigint AS seq, '' AS path, task AS result, NULL::json AS error FROM runs
WHERE run_id = $1 AND left(task::text, CASE WHEN $2 THEN 20 ELSE 11 END)
  = left('{"$perdure":"sealed"', CASE WHEN $2 THEN 20 ELSE 11 END)
UNION ALL
SELECT seq, path, result, error FROM journal
WHERE run_id = $1 AND shelf = (SELECT shelf FROM runs WHERE run_id = $1)
  AND left('{"$perdure":"sealed"', CASE WHEN $2 THEN 20 ELSE 11 END)
  IN (left(result::text, CASE WHEN $2 THEN 20 ELSE 11 END), left(error::text, CASE WHEN $2 THEN 20 ELSE 11 END))

-- name: replace_task
UPDATE runs SET task = $2::json WHERE run_id = $1

-- name: replace_rows
UPDATE journal AS j SET result = t.result::json, error = t.error::json
FROM unnest($2::bigint[], $3::text[], $4::text[]) AS t (seq, result, error)
WHERE j.run_id = $1 AND j.shelf = (SELECT shelf FROM runs WHERE run_id = $1) AND j.seq = t.seq

-- name: drop_uses
-- A page of uses ($1, $2: after which; $3: how many): those of runs that are gone go. A use is there shortly before its
-- run may be, hence the age ($4, seconds).
WITH page AS (
  SELECT run_id, hash FROM payload_uses WHERE (run_id, hash) > ($1, $2) ORDER BY run_id, hash LIMIT $3
), gone AS (
  DELETE FROM payload_uses AS u USING page
  WHERE u.run_id = page.run_id AND u.hash = page.hash AND u.used_at < now() - $4 * interval '1 second'
    AND NOT EXISTS (SELECT FROM runs WHERE runs.run_id = page.run_id)
  RETURNING u.hash
)
SELECT run_id, hash, (SELECT count(*) FROM gone) AS gone FROM page ORDER BY run_id DESC, hash DESC LIMIT 1

-- name: drop_payloads
-- A page of payloads ($1: after which; $2: how many): those that no run uses, and nobody has put for a while ($3, seconds).
-- Who puts one of them again waits for this commit, so what stands elsewhere is deleted before it.
WITH page AS (
  SELECT hash FROM payloads WHERE hash > $1 ORDER BY hash LIMIT $2
), gone AS (
  DELETE FROM payloads AS p USING page
  WHERE p.hash = page.hash AND p.used_at < now() - $3 * interval '1 second'
    AND NOT EXISTS (SELECT FROM payload_uses AS u WHERE u.hash = p.hash)
  RETURNING p.hash, p.elsewhere
)
SELECT hash, (SELECT count(*) FROM gone) AS gone, ARRAY(SELECT gone.hash FROM gone WHERE elsewhere) AS elsewhere
FROM page ORDER BY hash DESC LIMIT 1
