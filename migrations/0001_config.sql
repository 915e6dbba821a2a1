-- Configuration: the table that people write, and what each write leaves behind.
--
--   agent_configurations   the settings: (agent, key) -> text. Agent '*' is the layer under every agent; 'agent@instance' the one above.
--   config_counter         one row: the newest revision, and the transaction that took it
--   config_history         one row for each key a revision changed: old, new, who, when
--   config_heads           the newest revision that touched an agent's rows
--   config_broadcast       one row: the newest revision that surely went out on NATS
--   config_secret_keys     keys whose values must be references, never the secret itself
--
-- The way through: a write to agent_configurations is checked row by row (BEFORE). At commit the deferred triggers take
-- one revision for the whole transaction, write history, and send one NOTIFY {"revision", "agents"}. The counter row is
-- locked from then until the commit is done, so revisions become visible in their order and without gaps.

CREATE TABLE agent_configurations (
    agent_name text NOT NULL,
    config_key text NOT NULL,
    config_value text NOT NULL,
    last_updated timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    is_active boolean NOT NULL DEFAULT TRUE,
    PRIMARY KEY (agent_name, config_key)
);

CREATE TABLE config_counter (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    revision bigint NOT NULL DEFAULT 0,
    taken_by xid8
) WITH (fillfactor = 10);
INSERT INTO config_counter DEFAULT VALUES;

CREATE TABLE config_history (
    revision bigint NOT NULL,
    agent_name text NOT NULL,
    config_key text NOT NULL,
    old_value text,
    old_active boolean,
    new_value text,
    new_active boolean,
    changed_by text NOT NULL,
    sql_user text NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (agent_name, revision, config_key)
);
CREATE INDEX config_history_revision ON config_history (revision);

CREATE TABLE config_heads (
    agent_name text PRIMARY KEY,
    revision bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE config_broadcast (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    revision bigint NOT NULL DEFAULT 0,
    broadcaster text,
    recorded_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITH (fillfactor = 10);
INSERT INTO config_broadcast DEFAULT VALUES;

CREATE TABLE config_secret_keys (
    agent_name text NOT NULL,
    config_key text NOT NULL,
    PRIMARY KEY (agent_name, config_key)
);
INSERT INTO config_secret_keys VALUES ('*', 'llm_api_key');

-- BEFORE: names in their one form, last_updated kept, secrets refused before they can reach history.
-- SECURITY DEFINER: whoever may write the table needs no right on the tables behind it.
CREATE FUNCTION config_check_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    layer text;
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.agent_name, NEW.config_key, NEW.config_value, NEW.is_active)
            IS NOT DISTINCT FROM (OLD.agent_name, OLD.config_key, OLD.config_value, OLD.is_active) THEN
        RETURN OLD;
    END IF;
    layer := replace(lower(split_part(NEW.agent_name, '@', 1)), ' ', '-');
    IF position('@' IN NEW.agent_name) > 0 THEN
        NEW.agent_name := layer || substr(NEW.agent_name, position('@' IN NEW.agent_name));
    ELSE
        NEW.agent_name := layer;
    END IF;
    IF NEW.agent_name <> '*' AND NEW.agent_name !~ '^[a-z0-9][a-z0-9_-]{0,62}(@[A-Za-z0-9._-]{1,128})?$' THEN
        RAISE EXCEPTION 'agent_name "%" is not usable', left(NEW.agent_name, 80) USING
            ERRCODE = 'check_violation',
            HINT = 'Use [a-z0-9][a-z0-9_-]{0,62}, the same with @instance, or * for all agents.';
    END IF;
    IF NEW.config_key !~ '^[^\s[:cntrl:]]([^[:cntrl:]]{0,253}[^\s[:cntrl:]])?$' THEN
        RAISE EXCEPTION 'config_key "%" is not usable', left(NEW.config_key, 80) USING
            ERRCODE = 'check_violation',
            HINT = 'Use 1 to 255 printable characters, with no space at either end.';
    END IF;
    -- '*' concerns every agent, so a key that any agent calls secret is secret there too.
    IF NEW.config_value <> '' AND NEW.config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$' AND EXISTS (
        SELECT FROM config_secret_keys AS declared
        WHERE declared.config_key = NEW.config_key
          AND (NEW.agent_name = '*' OR declared.agent_name IN ('*', layer))
    ) THEN
        -- Or the server's log would keep the statement, and the secret with it. Only a superuser may say so.
        BEGIN
            PERFORM set_config('log_min_error_statement', 'panic', TRUE);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
        RAISE EXCEPTION '"%" is a secret key: its value must be a reference', NEW.config_key USING
            ERRCODE = 'check_violation',
            HINT = 'Write secret://env/NAME or secret://file/PATH; the agent resolves it, and the secret stays out of the database.';
    END IF;
    NEW.last_updated := CURRENT_TIMESTAMP;
    RETURN NEW;
END
$$;
CREATE TRIGGER config_check_row BEFORE INSERT OR UPDATE ON agent_configurations
FOR EACH ROW EXECUTE FUNCTION config_check_row();

-- At commit, for each changed row: the transaction's revision (taken by the first), history, the agent's head.
CREATE FUNCTION config_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    at bigint;
    who text := coalesce(nullif(current_setting('perdure.changed_by', TRUE), ''), session_user);
BEGIN
    UPDATE config_counter SET revision = revision + 1, taken_by = pg_current_xact_id()
    WHERE taken_by IS DISTINCT FROM pg_current_xact_id();
    SELECT revision INTO at FROM config_counter;

    -- A row that moved to another name left one key and came to another.
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND
            (OLD.agent_name, OLD.config_key) IS DISTINCT FROM (NEW.agent_name, NEW.config_key)) THEN
        INSERT INTO config_history VALUES
            (at, OLD.agent_name, OLD.config_key, OLD.config_value, OLD.is_active, NULL, NULL, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key) DO UPDATE SET new_value = NULL, new_active = NULL;
        INSERT INTO config_heads VALUES (OLD.agent_name, at)
        ON CONFLICT (agent_name) DO UPDATE SET revision = at WHERE config_heads.revision < at;
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND
            (OLD.agent_name, OLD.config_key) IS DISTINCT FROM (NEW.agent_name, NEW.config_key)) THEN
        INSERT INTO config_history VALUES
            (at, NEW.agent_name, NEW.config_key, NULL, NULL, NEW.config_value, NEW.is_active, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key)
        DO UPDATE SET new_value = EXCLUDED.new_value, new_active = EXCLUDED.new_active;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO config_history VALUES
            (at, NEW.agent_name, NEW.config_key, OLD.config_value, OLD.is_active, NEW.config_value, NEW.is_active, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key)
        DO UPDATE SET new_value = EXCLUDED.new_value, new_active = EXCLUDED.new_active;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO config_heads VALUES (NEW.agent_name, at)
        ON CONFLICT (agent_name) DO UPDATE SET revision = at WHERE config_heads.revision < at;
    END IF;
    RETURN NULL;
END
$$;
-- Deferred: an immediate one would hold the counter row while the transaction still takes row locks, and deadlock writers.
CREATE CONSTRAINT TRIGGER config_record_row AFTER INSERT OR DELETE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION config_record();
CREATE CONSTRAINT TRIGGER config_record_update AFTER UPDATE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION config_record();

-- Queued by the first row's UPDATE of the counter, so it runs once, after all rows of the transaction are in history.
CREATE FUNCTION config_notify() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    agents json;
BEGIN
    SELECT json_agg(touched.agent_name) INTO agents FROM (
        SELECT DISTINCT agent_name FROM config_history WHERE revision = NEW.revision LIMIT 101
    ) AS touched;
    -- 8000 bytes or more would make the writer's COMMIT fail; values never travel here at all.
    IF json_array_length(agents) > 100 OR octet_length(agents::text) > 7000 THEN
        agents := NULL;
    END IF;
    PERFORM pg_notify('perdure_config', json_build_object('revision', NEW.revision, 'agents', agents)::text);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER config_notify AFTER UPDATE ON config_counter
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION config_notify();

CREATE FUNCTION config_refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'agent_configurations cannot be truncated: that would leave no history and tell no agent' USING
        ERRCODE = 'feature_not_supported', HINT = 'Use DELETE FROM agent_configurations.';
END
$$;
CREATE TRIGGER config_refuse_truncate BEFORE TRUNCATE ON agent_configurations
FOR EACH STATEMENT EXECUTE FUNCTION config_refuse_truncate();
