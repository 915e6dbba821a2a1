-- Configuration with Redis as its source: what config_manager/redis_mirror.py asks (migrations/0013_config_redis.sql).

-- name: lock_mark
-- Whoever compares holds this row. One that hangs in the middle loses its session, not the others their time.
SELECT mark, set_config('idle_in_transaction_session_timeout', '15s', TRUE) FROM config_redis_mark FOR UPDATE;

-- name: mark
SELECT mark FROM config_redis_mark;

-- name: move_mark
UPDATE config_redis_mark SET mark = $1;

-- name: known_names
SELECT agent_name, config_key FROM config_redis
UNION
SELECT agent_name, config_key FROM agent_configurations;

-- name: known_names_of
SELECT agent_name, config_key FROM config_redis WHERE agent_name = ANY($1::text[])
UNION
SELECT agent_name, config_key FROM agent_configurations WHERE agent_name = ANY($1::text[]);

-- name: standing
-- What each of some keys stands at in the table (none for a hidden row), and what is known of Redis.
SELECT named.agent_name, named.config_key, stands.config_value, known.seen, known.sent
FROM unnest($1::text[], $2::text[]) AS named(agent_name, config_key)
LEFT JOIN agent_configurations AS stands
    ON stands.agent_name = named.agent_name AND stands.config_key = named.config_key AND stands.is_active
LEFT JOIN config_redis AS known
    ON known.agent_name = named.agent_name AND known.config_key = named.config_key;

-- name: had_before
-- Which of some values the table has had before: after a loss of data in Redis those are old ones that came back.
SELECT DISTINCT asked.agent_name, asked.config_key
FROM unnest($1::text[], $2::text[], $3::text[]) AS asked(agent_name, config_key, config_value)
JOIN config_history AS past
    ON past.agent_name = asked.agent_name AND past.config_key = asked.config_key
    AND past.new_value = asked.config_value;

-- name: know
INSERT INTO config_redis (agent_name, config_key, seen, sent)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[])
ON CONFLICT (agent_name, config_key) DO UPDATE SET seen = EXCLUDED.seen, sent = EXCLUDED.sent;

-- name: forget
DELETE FROM config_redis AS known
USING unnest($1::text[], $2::text[]) AS gone(agent_name, config_key)
WHERE known.agent_name = gone.agent_name AND known.config_key = gone.config_key;
