-- Retention: how long runs that have ended are kept, and journals that go by whole partitions.
--
--   retention           days that the runs of an agent are kept after their end; 0 is for ever. Under '' stands what the
--                       platform says, under '*' the setting of all agents, under a name the agent's own
--   journal_shelves     one row a partition of the journal: for which class of retention, and for runs that begin when
--   runs.shelf          the partition in which the run's journal stands, given at its first claim
--   journal             partitioned by shelf; shelf 0 is for ever, and for runs that began when their shelf was not there
--   journal.process_id  which process wrote the rows of this epoch: it stands in the first of them
--   journal.input       the arguments of a step as JSON, as people see them; no replay reads them
--
-- Ways through: the scheduler makes shelves ahead -> a run's first claim puts it on the shelf of its agent's class and of
--   the day -> the shelf's time is over: its runs that have ended long enough ago are forgotten, the others move to the
--   shelf of today with the rows they need -> no run refers to the shelf any more: it is dropped.
-- A retention is rounded up to a class for the shelf alone; what counts for a run is its agent's setting as it stands.
--
-- Unlike the other migrations this one wants every agent process to be stopped: those of before name a key of the journal
-- that it cannot have any more. It refuses while one is up, and keeps those of before from starting afterwards: the
-- sequence that they ask for has another name. Schedulers and gateways may go on.

LOCK TABLE processes IN SHARE ROW EXCLUSIVE MODE;
DO $$
DECLARE
  others text;
BEGIN
  -- As the reaper sees it: one whose lock is gone is dead, and a lock of before the last start of Postgres says nothing.
  SELECT string_agg(format('%s (%s)', p.agent_name, p.process_id), ', ' ORDER BY p.agent_name) INTO others
  FROM processes AS p
  WHERE p.state = 'live' AND p.lease_until > clock_timestamp() AND (
    p.postmaster_started <> pg_postmaster_start_time() OR EXISTS (
      SELECT FROM pg_locks AS l
      WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 1346719297 AND l.objid = p.lock_key::oid
        AND l.objsubid = 2 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())));
  IF others IS NOT NULL THEN
    RAISE EXCEPTION 'processes of agents are running: %. Stop them and migrate again; their runs go on as soon as '
                    'processes of this version are up', others USING ERRCODE = 'object_in_use';
  END IF;
END
$$;
ALTER SEQUENCE process_lock_keys RENAME TO process_locks;

DROP VIEW run_steps;

ALTER TABLE runs ADD COLUMN shelf integer NOT NULL DEFAULT 0;
CREATE INDEX runs_shelf ON runs (shelf, agent_name, finished_at) WHERE shelf > 0 OR finished_at IS NOT NULL;

-- Each shelf has the key (run_id, seq) for itself: a run's rows stand on one shelf, which its row names, and whoever
-- writes has locked that. So the key is as small as it was, and nothing is built anew here.
ALTER TABLE journal RENAME TO journal_0;
ALTER TABLE journal_0 RENAME CONSTRAINT journal_pkey TO journal_0_pkey;
ALTER TABLE journal_0
  ADD COLUMN process_id text COLLATE "C",
  ADD COLUMN input      text,
  ADD COLUMN shelf      integer NOT NULL DEFAULT 0;
CREATE TABLE journal (LIKE journal_0 INCLUDING DEFAULTS) PARTITION BY LIST (shelf);
ALTER TABLE journal ATTACH PARTITION journal_0 FOR VALUES IN (0);

-- Classes keep the number of partitions small, however many different settings there are.
CREATE FUNCTION retention_class(days integer) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN $1 = 0 THEN 0 ELSE (
    SELECT min(class) FROM unnest('{1,2,3,7,14,30,60,90,180,365,1095,3650,36500}'::integer[]) AS class WHERE class >= $1) END
$$;

CREATE TABLE retention (
  agent_name text COLLATE "C" PRIMARY KEY,
  days       integer NOT NULL CHECK (days BETWEEN 0 AND 36500),
  class      integer NOT NULL GENERATED ALWAYS AS (retention_class(days)) STORED
);
-- Where there are runs already, nobody has agreed to lose them.
INSERT INTO retention (agent_name, days) SELECT '', CASE WHEN EXISTS (SELECT FROM runs) THEN 0 ELSE 90 END;

CREATE TABLE journal_shelves (
  shelf     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- its partition is journal_N
  keep_days integer NOT NULL,                                  -- a class of `retention_class`
  begins_at timestamptz NOT NULL,
  ends_at   timestamptz NOT NULL,
  UNIQUE (keep_days, begins_at)
);

-- What an agent's setting says now.
CREATE FUNCTION retention_days(agent text) RETURNS integer
LANGUAGE sql STABLE AS $$
  SELECT r.days FROM retention AS r WHERE r.agent_name IN ($1, '*', '') ORDER BY r.agent_name DESC LIMIT 1
$$;

-- The shelf of a run of this agent that begins now. Asked at each claim, so its plans are kept.
CREATE FUNCTION shelf_for(agent text) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN COALESCE((
    SELECT s.shelf FROM journal_shelves AS s
    WHERE s.keep_days = (
        SELECT r.class FROM retention AS r WHERE r.agent_name IN (agent, '*', '') ORDER BY r.agent_name DESC LIMIT 1)
      AND s.begins_at <= now() AND s.ends_at > now()
    ORDER BY s.begins_at DESC LIMIT 1), 0);
END
$$;

-- Whether nobody needs a run that has ended any more: its end is told, and no parent is left that may ask for its outcome.
CREATE FUNCTION may_forget(run runs) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT NOT ($1).untold
    AND NOT EXISTS (
      SELECT FROM runs AS p WHERE p.run_id = ($1).parent_run_id AND p.status NOT IN ('completed', 'cancelled'))
    AND NOT (($1).joined AND EXISTS (
      SELECT FROM runs AS p WHERE p.status = 'waiting' AND p.waiting_children @> ARRAY[($1).run_id]))
    AND NOT EXISTS (SELECT FROM callbacks AS c WHERE c.run_id = ($1).run_id AND c.state = 'due')
$$;

-- Makes a shelf, and says whether it is new. It is attached as a whole: nobody who writes a journal waits for it. As the
-- owner, because the scheduler need not be one.
CREATE FUNCTION make_shelf(class integer, first timestamptz, last timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  made integer;
BEGIN
  INSERT INTO journal_shelves (keep_days, begins_at, ends_at) VALUES (class, first, last)
  ON CONFLICT DO NOTHING RETURNING shelf INTO made;
  IF made IS NULL THEN
    RETURN FALSE;
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE journal INCLUDING DEFAULTS, PRIMARY KEY (run_id, seq), CHECK (shelf = %s))',
                 'journal_' || made, made);
  EXECUTE format('ALTER TABLE journal ATTACH PARTITION %I FOR VALUES IN (%s)', 'journal_' || made, made);
  RETURN TRUE;
END
$$;

-- Drops a shelf to which no run refers, and says whether it did. All of the journal is held for that moment, so that no
-- run can come to the shelf any more; whoever holds it for long (a backup) is not waited for, the next look tries again.
CREATE FUNCTION drop_shelf(gone integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
BEGIN
  PERFORM FROM journal_shelves WHERE shelf = gone AND ends_at + keep_days * interval '1 day' <= now() FOR UPDATE;
  IF NOT FOUND THEN
    RETURN FALSE;
  END IF;
  LOCK TABLE ONLY journal IN ACCESS EXCLUSIVE MODE;
  IF EXISTS (SELECT FROM runs WHERE shelf = gone AND shelf > 0) THEN
    RETURN FALSE;
  END IF;
  EXECUTE format('DROP TABLE %I', 'journal_' || gone);
  DELETE FROM journal_shelves WHERE shelf = gone;
  RETURN TRUE;
EXCEPTION WHEN lock_not_available THEN
  RETURN FALSE;
END
$$;

REVOKE ALL ON FUNCTION make_shelf(integer, timestamptz, timestamptz), drop_shelf(integer) FROM PUBLIC;

-- A setting's text as days, NULL for a text that is none. The bounds are those of perdure/config/keys.py.
CREATE FUNCTION retention_setting(said text) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN trim($1) ~ '^[0-9]{1,5}$' AND trim($1)::integer <= 36500 THEN trim($1)::integer END
$$;

-- At commit, for each changed row of the setting; a text that is no number of days leaves the last good one.
CREATE FUNCTION config_set_retention() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  place record;
  said text;
BEGIN
  FOR place IN
    SELECT DISTINCT layer FROM (VALUES
      (CASE WHEN TG_OP <> 'INSERT' AND OLD.config_key = 'retention_days' THEN OLD.agent_name END),
      (CASE WHEN TG_OP <> 'DELETE' AND NEW.config_key = 'retention_days' THEN NEW.agent_name END)) AS t (layer)
    WHERE layer IS NOT NULL AND position('@' IN layer) = 0
  LOOP
    SELECT config_value INTO said FROM agent_configurations
    WHERE agent_name = place.layer AND config_key = 'retention_days' AND is_active;
    IF said IS NULL OR lower(trim(said)) = 'null' THEN
      DELETE FROM retention WHERE agent_name = place.layer;
    ELSIF retention_setting(said) IS NOT NULL THEN
      INSERT INTO retention (agent_name, days) VALUES (place.layer, retention_setting(said))
      ON CONFLICT (agent_name) DO UPDATE SET days = excluded.days;
    END IF;
  END LOOP;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER config_set_retention_added AFTER INSERT ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.config_key = 'retention_days') EXECUTE FUNCTION config_set_retention();
CREATE CONSTRAINT TRIGGER config_set_retention_changed AFTER UPDATE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.config_key = 'retention_days' OR OLD.config_key = 'retention_days') EXECUTE FUNCTION config_set_retention();
CREATE CONSTRAINT TRIGGER config_set_retention_removed AFTER DELETE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (OLD.config_key = 'retention_days') EXECUTE FUNCTION config_set_retention();

INSERT INTO retention (agent_name, days)
SELECT agent_name, retention_setting(config_value) FROM agent_configurations
WHERE config_key = 'retention_days' AND is_active AND retention_setting(config_value) IS NOT NULL
  AND position('@' IN agent_name) = 0;

-- As before (see 0034), on the run's shelf, with what the step was called with.
DROP FUNCTION journal_row(text, bigint, bigint, text, text, text, text, integer, bigint, double precision, double precision,
                          json);
CREATE FUNCTION journal_row(
  of_run text, of_epoch bigint, of_seq bigint, at_path text, of_kind text, of_name text, of_hash text, of_attempt integer,
  on_revision bigint, began double precision, ended double precision, outcome_is json, called_with text DEFAULT NULL
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  held record;
BEGIN
  SELECT shelf, process_id INTO held FROM runs
  WHERE run_id = of_run AND epoch = of_epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'run % is not held in epoch % any more', of_run, of_epoch USING ERRCODE = 'PD001';
  END IF;
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, attempt, config_revision, started_at,
                       finished_at, epoch, process_id, input, shelf)
  VALUES (of_run, of_seq, at_path, of_kind, of_name, of_hash, 'ok', outcome_is, of_attempt, on_revision,
          to_timestamp(began), to_timestamp(ended), of_epoch, held.process_id, called_with, held.shelf);
  RETURN outcome_is::text;
END $$;

CREATE VIEW run_steps AS
SELECT j.run_id, r.agent_name AS agent, r.workflow, j.seq, j.path, j.kind, j.name,
       CASE WHEN j.kind = 'retry' THEN 'retrying' ELSE
         CASE j.outcome WHEN 'ok' THEN 'completed' WHEN 'error' THEN 'failed' WHEN 'timeout' THEN 'timed_out'
                        ELSE 'waiting' END END AS status,
       j.attempt, j.due_at, j.epoch, first.process_id AS process, j.config_revision, j.error ->> 'type' AS error_type,
       j.error ->> 'message' AS error_message, j.input, j.result,
       CASE WHEN j.result ->> 'input_tokens' ~ '^\d{1,15}$' THEN (j.result ->> 'input_tokens')::bigint END AS input_tokens,
       CASE WHEN j.result ->> 'output_tokens' ~ '^\d{1,15}$' THEN (j.result ->> 'output_tokens')::bigint END AS output_tokens,
       j.started_at, j.finished_at,
       round(extract(epoch FROM j.finished_at - j.started_at)::numeric, 3) AS seconds
FROM runs AS r JOIN journal AS j ON j.run_id = r.run_id AND j.shelf = r.shelf
LEFT JOIN LATERAL (
  SELECT f.process_id FROM journal AS f
  WHERE f.run_id = j.run_id AND f.shelf = j.shelf AND f.epoch = j.epoch AND f.process_id IS NOT NULL
  ORDER BY f.seq LIMIT 1) AS first ON TRUE;
