-- What agents say their settings are: the JSON Schema that each published when it started.
-- Two versions of an agent that run side by side take turns; the newest publication counts.

CREATE TABLE config_schemas (
    agent_name text PRIMARY KEY,
    schema json NOT NULL,
    schema_hash text NOT NULL,
    published_by text NOT NULL,
    published_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- A key that a schema calls secret stays declared when a later schema drops it: an old history may not open up again.
CREATE FUNCTION config_schema_published() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO config_secret_keys (agent_name, config_key)
    SELECT NEW.agent_name, property.key
    FROM json_each(NEW.schema -> 'properties') AS property
    WHERE property.value ->> 'secret' = 'true'
    ON CONFLICT DO NOTHING;
    PERFORM pg_notify('perdure_config', json_build_object('schema', NEW.agent_name)::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER config_schema_published AFTER INSERT OR UPDATE ON config_schemas
FOR EACH ROW EXECUTE FUNCTION config_schema_published();
