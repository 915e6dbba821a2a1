-- Redis as the source of configuration (PERDURE_CONFIG_STORE=redis): what is known of Redis, so that a change there can
-- be told from a change of agent_configurations, and a loss of data in Redis from a change.
--
--   config_redis        per key the hash of what Redis had when both agreed, and of what is being written there
--   config_redis_mark   one row: a number that Redis keeps, too; when Redis has a lower one, it has lost data. Locked by
--                       whoever compares, so that one does so at a time.

CREATE TABLE config_redis (
    agent_name text NOT NULL,
    config_key text NOT NULL,
    seen bytea NOT NULL,               -- SHA-256 of the value, empty: there was none
    sent bytea,                        -- the same of what is on its way to Redis
    PRIMARY KEY (agent_name, config_key)
);

CREATE TABLE config_redis_mark (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    mark bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO config_redis_mark DEFAULT VALUES;
