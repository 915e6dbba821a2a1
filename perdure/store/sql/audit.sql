-- The audit log: sealed, listed, verified. migrations/0041_audit.sql and 0042 have the tables.

-- name: seal_alone
-- One sealer of a chain at a time; who comes second has nothing to do.
SELECT pg_try_advisory_xact_lock(hashtextextended('perdure audit ' || $1::text, 0))

-- name: last_seal
SELECT s.seq, s.high, s.digest, s.gaps, s.gaps_since
FROM audit_heads AS h JOIN audit_seals AS s ON s.chain = h.chain AND s.seq = h.seq
WHERE h.chain = $1

-- name: new_acts
-- What is above the newest sealed, and what has committed since in the gaps below it.
(SELECT audit_id AS id, at, actor, sql_user, act, subject, detail FROM audit_log
 WHERE audit_id > $1 ORDER BY audit_id LIMIT $3)
UNION ALL
(SELECT audit_id, at, actor, sql_user, act, subject, detail FROM audit_log WHERE audit_id = ANY($2::bigint[]))
ORDER BY id

-- name: new_changes
-- Revisions become visible in their order and without gaps: whole ones.
SELECT revision AS id, changed_at AS at, agent_name, config_key, old_value, old_active, new_value, new_active,
       changed_by, sql_user
FROM config_history
WHERE revision > $1 AND revision < $2::bigint + (SELECT min(revision) FROM config_history WHERE revision > $1)
ORDER BY revision, agent_name, config_key

-- name: seal
WITH sealed AS (
  INSERT INTO audit_seals (chain, seq, first_at, last_at, high, ids, gaps, gaps_since, hashes, content, key_id, digest)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
)
INSERT INTO audit_heads (chain, seq, digest) VALUES ($1, $2, $12)
ON CONFLICT (chain) DO UPDATE SET seq = $2, digest = $12

-- name: prune
SELECT audit_prune($1, $2)

-- name: empty
SELECT audit_empty($1, $2)

-- name: seals
SELECT seq, first_at, last_at, high, ids, gaps, hashes, content, key_id, digest FROM audit_seals
WHERE chain = $1 AND seq > $2 ORDER BY seq LIMIT 64

-- name: head
SELECT seq, digest FROM audit_heads WHERE chain = $1

-- name: acts_of
SELECT audit_id AS id, at, actor, sql_user, act, subject, detail FROM audit_log WHERE audit_id = ANY($1::bigint[])

-- name: changes_of
SELECT revision AS id, changed_at AS at, agent_name, config_key, old_value, old_active, new_value, new_active,
       changed_by, sql_user
FROM config_history WHERE revision = ANY($1::bigint[]) ORDER BY revision, agent_name, config_key

-- name: act_ids
-- All ids up to $2, a page at a time.
SELECT audit_id AS id FROM audit_log WHERE audit_id > $1 AND audit_id <= $2 ORDER BY audit_id LIMIT 10000

-- name: change_ids
SELECT DISTINCT revision AS id FROM config_history WHERE revision > $1 AND revision <= $2 ORDER BY revision LIMIT 10000

-- name: change_marks
SELECT (SELECT pruned_to FROM config_broadcast) AS pruned_to, (SELECT revision FROM config_counter) AS newest,
       (SELECT max(revision) FROM config_history) AS last

-- name: waiting
SELECT count(*) FROM audit_log WHERE audit_id > $1

-- name: list
-- Newest first, below the cursor.
SELECT audit_id, at, actor, sql_user, act, subject, detail FROM audit_log
WHERE ($1::bigint IS NULL OR audit_id < $1) AND ($2::text IS NULL OR actor = $2) AND ($3::text IS NULL OR act LIKE $3)
  AND ($4::text IS NULL OR subject = $4) AND ($5::timestamptz IS NULL OR at >= $5)
ORDER BY audit_id DESC LIMIT $6

-- name: act_as
SELECT set_config('perdure.actor', $1, FALSE)
