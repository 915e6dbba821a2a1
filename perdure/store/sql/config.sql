-- Configuration: what the ConfigManager asks of the tables in migrations/0001_config.sql.

-- name: load_rows
SELECT agent_name, config_key, config_value, is_active FROM agent_configurations;

-- name: load_heads
SELECT agent_name, revision FROM config_heads;

-- name: revision
SELECT revision FROM config_counter;

-- name: pruned_to
SELECT pruned_to FROM config_broadcast;

-- name: changes_since
-- Revisions have no gaps and become visible in order, so the next $2 of them are whole.
SELECT revision, agent_name, config_key, new_value, new_active, changed_at
FROM config_history
WHERE revision > $1 AND revision <= $1 + $2::bigint
ORDER BY revision, agent_name, config_key;

-- name: notices_since
-- The same without values: what a broadcaster that takes over has to say again.
SELECT revision, agent_name, array_agg(config_key ORDER BY config_key) AS keys, max(changed_at) AS changed_at
FROM config_history
WHERE revision > $1 AND revision <= $1 + $2::bigint
GROUP BY revision, agent_name
ORDER BY revision, agent_name;

-- name: try_lead
-- Never pg_advisory_lock: waiting on it would hold back vacuum.
SELECT pg_try_advisory_lock(70726475, 1);

-- name: commit_later
SET synchronous_commit = off;

-- name: broadcast_position
SELECT broadcast.revision AS broadcast, counter.revision AS newest, broadcast.pruned_to
FROM config_broadcast AS broadcast CROSS JOIN config_counter AS counter;

-- name: record_broadcast
UPDATE config_broadcast SET revision = $1, broadcaster = $2, recorded_at = now() WHERE revision < $1;

-- name: say_who
SELECT set_config('perdure.changed_by', $1, TRUE);

-- name: lock_counter
-- After the rows are locked, as every other writer does at its commit: the other order would deadlock with them.
-- What a later statement reads of other transactions cannot change before this one's commit.
SELECT revision FROM config_counter FOR UPDATE;

-- name: head_of_layers
SELECT coalesce(max(head.revision), 0) AS revision
FROM unnest($1::text[]) AS layer(agent_name)
CROSS JOIN LATERAL (
    SELECT max(history.revision) AS revision FROM config_history AS history WHERE history.agent_name = layer.agent_name
) AS head;

-- name: put_rows
-- Ordered by key: two writers of the same agent take their row locks in one order.
INSERT INTO agent_configurations (agent_name, config_key, config_value, is_active)
SELECT $1, put.config_key, put.config_value, put.is_active
FROM unnest($2::text[], $3::text[], $4::boolean[]) AS put(config_key, config_value, is_active)
ORDER BY put.config_key
ON CONFLICT (agent_name, config_key) DO UPDATE
SET config_value = EXCLUDED.config_value, is_active = EXCLUDED.is_active;

-- name: delete_rows
DELETE FROM agent_configurations WHERE agent_name = $1 AND config_key = ANY($2::text[]);

-- name: own_revision
-- Inside the writing transaction, after fire_triggers: the revision it took, or none if nothing changed.
SELECT revision FROM config_counter WHERE taken_by = pg_current_xact_id_if_assigned();

-- name: fire_triggers
-- The NOTIFY stays deferred: it names the agents of the whole transaction.
SET CONSTRAINTS config_record_row, config_record_update IMMEDIATE;

-- name: layer_at
-- The rows of one layer as they stood at revision $2.
SELECT DISTINCT ON (config_key) config_key, new_value, new_active
FROM config_history
WHERE agent_name = $1 AND revision <= $2
ORDER BY config_key, revision DESC;

-- name: layers_at
-- The rows of some layers as they stood at revision $2, and the newest revision that had touched each.
SELECT DISTINCT ON (agent_name, config_key)
    agent_name, config_key, new_value AS config_value, coalesce(new_active, FALSE) AS is_active,
    max(revision) OVER (PARTITION BY agent_name) AS head
FROM config_history
WHERE agent_name = ANY($1::text[]) AND revision <= $2
ORDER BY agent_name, config_key, revision DESC;

-- name: layer_now
SELECT config_key, config_value, is_active FROM agent_configurations WHERE agent_name = $1;

-- name: history
-- One page, the newest first, below the cursor ($2, $3, $4).
SELECT revision, agent_name, config_key, old_value, old_active, new_value, new_active, changed_by, sql_user, changed_at
FROM config_history
WHERE agent_name = ANY($1::text[])
  AND (revision, agent_name, config_key) < ($2::bigint, $3::text, $4::text)
  AND ($5::text IS NULL OR config_key = $5)
ORDER BY revision DESC, agent_name DESC, config_key DESC
LIMIT $6;

-- name: key_history
-- One key of one layer up to revision $3, the newest first: where a value that is refused looks for its last good one.
SELECT revision, new_value, new_active
FROM config_history
WHERE agent_name = $1 AND config_key = $2 AND revision <= $3
ORDER BY revision DESC
LIMIT 100;

-- name: schemas
SELECT agent_name, schema::text AS schema, schema_hash FROM config_schemas;

-- name: schema_of
SELECT schema::text AS schema, schema_hash FROM config_schemas WHERE agent_name = $1;

-- name: schema_hashes
SELECT agent_name, schema_hash FROM config_schemas;

-- name: publish_schema
-- The same schema again is no change, and tells nobody.
INSERT INTO config_schemas (agent_name, schema, schema_hash, published_by) VALUES ($1, $2::text::json, $3, $4)
ON CONFLICT (agent_name) DO UPDATE
SET schema = EXCLUDED.schema,
    schema_hash = EXCLUDED.schema_hash,
    published_by = EXCLUDED.published_by,
    published_at = EXCLUDED.published_at
WHERE config_schemas.schema_hash <> EXCLUDED.schema_hash;
