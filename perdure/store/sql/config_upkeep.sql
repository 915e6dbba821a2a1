-- Configuration: what the ConfigManager does from time to time. migrations/0014_config_upkeep.sql has the columns.

-- name: undone_secrets
-- Keys that were declared secret, and may have plain values from before.
SELECT agent_name, config_key FROM config_secret_keys WHERE NOT redacted;

-- name: delete_plain
-- The rows of one declared key ($1 agent or '*', $2 key) that are no reference. '*' concerns every agent.
DELETE FROM agent_configurations
WHERE config_key = $2::text
  AND ($1::text = '*' OR agent_name = '*' OR split_part(agent_name, '@', 1) = $1::text)
  AND config_value <> '' AND config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$'
RETURNING agent_name;

-- name: mask_history
UPDATE config_history
SET old_value = CASE WHEN old_value = '' OR old_value ~ '^secret://(env|file)/[^[:cntrl:]]+$'
                     THEN old_value WHEN old_value IS NOT NULL THEN '********' END,
    new_value = CASE WHEN new_value = '' OR new_value ~ '^secret://(env|file)/[^[:cntrl:]]+$'
                     THEN new_value WHEN new_value IS NOT NULL THEN '********' END
WHERE config_key = $2::text
  AND ($1::text = '*' OR agent_name = '*' OR split_part(agent_name, '@', 1) = $1::text)
  AND (old_value <> '' AND old_value !~ '^secret://(env|file)/[^[:cntrl:]]+$'
       OR new_value <> '' AND new_value !~ '^secret://(env|file)/[^[:cntrl:]]+$');

-- name: strip_snapshots
-- A run that stands on one goes on without the key.
UPDATE config_snapshots SET values = (values::jsonb - $2::text)::json
WHERE ($1::text = '*' OR agent_name = $1::text)
  AND values ->> $2::text <> '' AND values ->> $2::text !~ '^secret://(env|file)/[^[:cntrl:]]+$';

-- name: strip_rollouts
-- In `changes`, and in the `previous` rows of each instance.
UPDATE config_rollouts
SET changes = (changes::jsonb - $2::text)::json,
    previous = (SELECT coalesce(json_object_agg(each.key, each.value::jsonb - $2::text), '{}') FROM json_each(previous) AS each)
WHERE ($1::text = '*' OR agent_name = $1::text)
  AND (changes::jsonb ? $2::text OR EXISTS (SELECT FROM json_each(previous) AS each WHERE each.value::jsonb ? $2::text))
  AND (coalesce(changes ->> $2::text, '') !~ '^(secret://(env|file)/[^[:cntrl:]]+)?$' OR EXISTS (
      SELECT FROM json_each(previous) AS each
      WHERE coalesce(each.value ->> $2::text, '') !~ '^(secret://(env|file)/[^[:cntrl:]]+)?$'));

-- name: secret_done
UPDATE config_secret_keys SET redacted = TRUE WHERE agent_name = $1 AND config_key = $2;

-- name: prune_floor
-- Up to which revision history may go now: a batch of $3 rows on from where it is, all of it older than $1 days or
-- more than $2 revisions back, and told to every agent. 0 for $1 or $2 is no such bound.
SELECT max(old.revision) FROM (
    SELECT history.revision, history.changed_at
    FROM config_history AS history, config_broadcast AS broadcast
    WHERE history.revision > broadcast.pruned_to AND history.revision <= broadcast.revision
    ORDER BY history.revision
    LIMIT $3
) AS old, config_counter AS counter
WHERE $1::float8 > 0 AND old.changed_at < now() - $1 * interval '1 day'
   OR $2::bigint > 0 AND old.revision <= counter.revision - $2;

-- name: raise_floor
-- First: whoever rolls back to below is refused from here on.
UPDATE config_broadcast SET pruned_to = $1 WHERE pruned_to < $1 RETURNING pruned_to;

-- name: prune
-- What is left up to $1 is the newest row of each key, and the rows named by $2, $3, $4 (layer, key, revision): good
-- values that are held.
WITH newest AS (
    SELECT agent_name, config_key, max(revision) AS revision
    FROM config_history
    WHERE revision <= $1
    GROUP BY agent_name, config_key
)
DELETE FROM config_history AS history USING newest
WHERE history.revision <= $1
  AND history.agent_name = newest.agent_name AND history.config_key = newest.config_key
  AND history.revision < newest.revision
  AND NOT EXISTS (
      SELECT FROM unnest($2::text[], $3::text[], $4::bigint[]) AS kept(agent_name, config_key, revision)
      WHERE kept.agent_name = history.agent_name AND kept.config_key = history.config_key
        AND kept.revision = history.revision);
