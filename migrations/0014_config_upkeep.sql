-- Configuration: history that is bounded, and secrets that were there before they were declared.
--
--   config_broadcast.pruned_to   rows of history up to this revision are gone, but for the newest of each key
--   config_secret_keys.redacted  no plain value of this key is left anywhere: the ConfigManager has looked

ALTER TABLE config_broadcast ADD COLUMN pruned_to bigint NOT NULL DEFAULT 0;
ALTER TABLE config_secret_keys ADD COLUMN redacted boolean NOT NULL DEFAULT FALSE;

-- As before; bounds are counted apart, as a bounded repetition is the dearest part of a regular expression, and whether
-- a key is declared secret is looked up once a row: only then are values compared with the form of a reference.
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
    IF TG_OP = 'INSERT' OR NEW.agent_name IS DISTINCT FROM OLD.agent_name THEN
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
    ELSE
        layer := split_part(NEW.agent_name, '@', 1);
    END IF;
    IF (TG_OP = 'INSERT' OR NEW.config_key IS DISTINCT FROM OLD.config_key) AND (
        length(NEW.config_key) NOT BETWEEN 1 AND 255 OR NEW.config_key ~ '[[:cntrl:]]|^\s|\s$'
    ) THEN
        RAISE EXCEPTION 'config_key "%" is not usable', left(NEW.config_key, 80) USING
            ERRCODE = 'check_violation',
            HINT = 'Use 1 to 255 printable characters, with no space at either end.';
    END IF;
    -- '*' concerns every agent, so a key that any agent calls secret is secret there too.
    PERFORM FROM config_secret_keys AS declared
    WHERE declared.config_key = NEW.config_key AND (NEW.agent_name = '*' OR declared.agent_name IN ('*', layer));
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

-- As before, and: a plain value of a key that was declared secret since the row was checked is refused now that the
-- counter row is ours, and the one it replaces is not written down.
CREATE OR REPLACE FUNCTION config_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    at bigint;
    who text := coalesce(nullif(current_setting('perdure.changed_by', TRUE), ''), session_user);
    old_text text;
    secret boolean := FALSE;
BEGIN
    UPDATE config_counter SET revision = revision + 1, taken_by = pg_current_xact_id()
    WHERE taken_by IS DISTINCT FROM pg_current_xact_id()
    RETURNING revision INTO at;
    IF NOT FOUND THEN
        SELECT revision INTO at FROM config_counter;
    END IF;

    -- Of the old name and the new one, which are mostly the same.
    IF TG_OP <> 'INSERT' THEN
        old_text := OLD.config_value;
        PERFORM FROM config_secret_keys AS declared
        WHERE declared.config_key = OLD.config_key
          AND (OLD.agent_name = '*' OR declared.agent_name IN ('*', split_part(OLD.agent_name, '@', 1)));
        secret := FOUND;
        IF secret AND old_text <> '' AND old_text !~ '^secret://(env|file)/[^[:cntrl:]]+$' THEN
            old_text := '********';
        END IF;
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND
            (OLD.agent_name, OLD.config_key) IS DISTINCT FROM (NEW.agent_name, NEW.config_key)) THEN
        PERFORM FROM config_secret_keys AS declared
        WHERE declared.config_key = NEW.config_key
          AND (NEW.agent_name = '*' OR declared.agent_name IN ('*', split_part(NEW.agent_name, '@', 1)));
        secret := FOUND;
    END IF;
    IF TG_OP <> 'DELETE' AND secret AND NEW.config_value <> ''
            AND NEW.config_value !~ '^secret://(env|file)/[^[:cntrl:]]+$' THEN
        RAISE EXCEPTION '"%" has become a secret key: its value must be a reference', NEW.config_key USING
            ERRCODE = 'check_violation',
            HINT = 'Write secret://env/NAME or secret://file/PATH.';
    END IF;

    -- A row that moved to another name left one key and came to another.
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND
            (OLD.agent_name, OLD.config_key) IS DISTINCT FROM (NEW.agent_name, NEW.config_key)) THEN
        INSERT INTO config_history VALUES
            (at, OLD.agent_name, OLD.config_key, old_text, OLD.is_active, NULL, NULL, who, session_user, clock_timestamp())
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
            (at, NEW.agent_name, NEW.config_key, old_text, OLD.is_active, NEW.config_value, NEW.is_active, who, session_user, clock_timestamp())
        ON CONFLICT (agent_name, revision, config_key)
        DO UPDATE SET new_value = EXCLUDED.new_value, new_active = EXCLUDED.new_active;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE config_heads SET revision = at WHERE agent_name = NEW.agent_name AND revision <= at;
        IF NOT FOUND THEN
            INSERT INTO config_heads VALUES (NEW.agent_name, at)
            ON CONFLICT (agent_name) DO UPDATE SET revision = at WHERE config_heads.revision < at;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
