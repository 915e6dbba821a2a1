-- Configuration: the same promises to whoever writes agent_configurations, for half of what a write cost Postgres.
-- Writers take turns from the counter row to the end of their commit, so what the triggers do bounds all of them.
--
--   config_heads   a view now: history knows it, as pruning leaves the newest row of each key

-- First what writers lock first, so that this waits for them and none of them for this.
LOCK TABLE agent_configurations IN ACCESS EXCLUSIVE MODE;

DROP TABLE config_heads;
-- From each layer to the next by the key of config_history, so that long histories do not slow it.
CREATE VIEW config_heads AS
WITH RECURSIVE layers (agent_name) AS (
    (SELECT agent_name FROM config_history ORDER BY agent_name LIMIT 1)
    UNION ALL
    SELECT (
        SELECT history.agent_name FROM config_history AS history
        WHERE history.agent_name > layers.agent_name ORDER BY history.agent_name LIMIT 1
    )
    FROM layers WHERE layers.agent_name IS NOT NULL
)
SELECT layers.agent_name, (
    SELECT max(history.revision) FROM config_history AS history WHERE history.agent_name = layers.agent_name
) AS revision
FROM layers WHERE layers.agent_name IS NOT NULL;

-- Each write looks up whether its key is declared secret, for whichever agent.
CREATE INDEX config_secret_keys_key ON config_secret_keys (config_key);

-- As before; but most names have their one form already, which one look tells, and only the others are taken apart.
CREATE OR REPLACE FUNCTION config_check_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    layer text;
    instance text;
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.agent_name, NEW.config_key, NEW.config_value, NEW.is_active)
            IS NOT DISTINCT FROM (OLD.agent_name, OLD.config_key, OLD.config_value, OLD.is_active) THEN
        RETURN OLD;
    END IF;
    IF NEW.agent_name !~ '^[a-z0-9][a-z0-9_-]*$' OR length(NEW.agent_name) > 63
            OR NEW.config_key !~ '^[A-Za-z0-9_.-]+$' OR length(NEW.config_key) > 255 THEN
        layer := replace(lower(split_part(NEW.agent_name, '@', 1)), ' ', '-');
        IF position('@' IN NEW.agent_name) > 0 THEN
            instance := substr(NEW.agent_name, position('@' IN NEW.agent_name) + 1);
            NEW.agent_name := layer || '@' || instance;
        ELSE
            NEW.agent_name := layer;
        END IF;
        IF NEW.agent_name <> '*' AND (
            length(layer) > 63 OR layer !~ '^[a-z0-9][a-z0-9_-]*$'
            OR instance IS NOT NULL AND (length(instance) > 128 OR instance !~ '^[A-Za-z0-9._-]+$')
        ) THEN
            RAISE EXCEPTION 'agent_name "%" is not usable', left(NEW.agent_name, 80) USING
                ERRCODE = 'check_violation',
                HINT = 'Use [a-z0-9][a-z0-9_-]{0,62}, the same with @instance, or * for all agents.';
        END IF;
        IF length(NEW.config_key) NOT BETWEEN 1 AND 255 OR NEW.config_key ~ '[[:cntrl:]]|^\s|\s$' THEN
            RAISE EXCEPTION 'config_key "%" is not usable', left(NEW.config_key, 80) USING
                ERRCODE = 'check_violation',
                HINT = 'Use 1 to 255 printable characters, with no space at either end.';
        END IF;
    END IF;
    -- '*' concerns every agent, so a key that any agent calls secret is secret there too.
    PERFORM FROM config_secret_keys AS declared
    WHERE declared.config_key = NEW.config_key
      AND (NEW.agent_name = '*' OR declared.agent_name IN ('*', split_part(NEW.agent_name, '@', 1)));
    IF FOUND AND NEW.config_value <> '' AND NEW.config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$' THEN
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

-- As before, in three statements for most rows: take the revision; read it, and whether the key is secret; history.
-- The second begins when the counter row is ours, so it sees every declaration that was committed by then.
CREATE OR REPLACE FUNCTION config_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    at bigint;
    who text;
    was_secret boolean;
    is_secret boolean;
    moved boolean;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        moved := (OLD.agent_name, OLD.config_key) IS DISTINCT FROM (NEW.agent_name, NEW.config_key);
        IF NOT moved AND OLD.config_value = NEW.config_value AND OLD.is_active = NEW.is_active THEN
            RETURN NULL;
        END IF;
    END IF;
    UPDATE config_counter SET revision = revision + 1, taken_by = pg_current_xact_id()
    WHERE taken_by IS DISTINCT FROM pg_current_xact_id();
    SELECT
        counter.revision,
        coalesce(nullif(current_setting('perdure.changed_by', TRUE), ''), session_user),
        EXISTS (
            SELECT FROM config_secret_keys AS declared
            WHERE declared.config_key = OLD.config_key
              AND (OLD.agent_name = '*' OR declared.agent_name IN ('*', split_part(OLD.agent_name, '@', 1)))
        ),
        EXISTS (
            SELECT FROM config_secret_keys AS declared
            WHERE declared.config_key = NEW.config_key
              AND (NEW.agent_name = '*' OR declared.agent_name IN ('*', split_part(NEW.agent_name, '@', 1)))
        )
    INTO at, who, was_secret, is_secret FROM config_counter AS counter;

    -- Declared since the row was checked: a plain value is refused, and the one it replaces is not written down.
    IF was_secret AND OLD.config_value <> '' AND OLD.config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$' THEN
        OLD.config_value := '********';
    END IF;
    IF is_secret AND NEW.config_value <> '' AND NEW.config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$' THEN
        RAISE EXCEPTION '"%" has become a secret key: its value must be a reference', NEW.config_key USING
            ERRCODE = 'check_violation',
            HINT = 'Write secret://env/NAME or secret://file/PATH.';
    END IF;
    IF moved OR TG_OP = 'DELETE' THEN  -- a row that moved to another name left one key and came to another
        INSERT INTO config_history VALUES
            (at, OLD.agent_name, OLD.config_key, OLD.config_value, OLD.is_active, NULL, NULL, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key) DO UPDATE SET new_value = NULL, new_active = NULL;
        OLD.config_value := NULL;
        OLD.is_active := NULL;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO config_history VALUES
            (at, NEW.agent_name, NEW.config_key, OLD.config_value, OLD.is_active, NEW.config_value, NEW.is_active, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key)
        DO UPDATE SET new_value = EXCLUDED.new_value, new_active = EXCLUDED.new_active;
    END IF;
    RETURN NULL;
END
$$;

-- Not where the row changes: that condition would be parsed anew in every UPDATE. config_record asks first.
DROP TRIGGER config_record_update ON agent_configurations;
CREATE CONSTRAINT TRIGGER config_record_update AFTER UPDATE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION config_record();

-- As before; most transactions concern one agent, which takes no list to be made.
CREATE OR REPLACE FUNCTION config_notify() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    agents json;
BEGIN
    PERFORM pg_notify('perdure_config', json_build_object('revision', NEW.revision, 'agents', json_build_array(min(agent_name)))::text)
    FROM config_history WHERE revision = NEW.revision
    HAVING min(agent_name) = max(agent_name);
    IF FOUND THEN
        RETURN NULL;
    END IF;
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
