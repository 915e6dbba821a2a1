-- Queues: which of the runs that could go on may.
--
--   queues        one row a queue that is used or has settings; `*` has those of all. A claim locks the queue's row first.
--   queue_starts  when the runs of a queue with a rate limit began, as far back as its period
--   start_keys    which run holds a key of deduplication or of debouncing
--
-- A run without a queue (queue_name NULL) never touches any of these. One with a queue holds a place in it while it is
-- `running`, and only then: places are counted from the runs themselves, so whoever loses a run gives its place back.
--
-- The settings are rows of agent_configurations like all others: those of queue `mail` stand under the name `mail`,
-- which may be an agent's (each agent has a queue of its own name) or the queue's alone. A trigger turns them into
-- columns at commit; a text that is no setting leaves the column at its last good value.

CREATE TABLE queues (
  queue_name          text COLLATE "C" PRIMARY KEY,
  concurrency         integer,            -- runs that are executed at a time, all processes together; 0 holds all
  process_concurrency integer,            -- and in one process
  rate_limit          integer,            -- runs that begin within rate_period
  rate_period         double precision,   -- seconds; NULL is a minute
  created_at          timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE queue_starts (
  queue_name text COLLATE "C" NOT NULL,
  started_at timestamptz NOT NULL
);
CREATE INDEX queue_starts_newest ON queue_starts (queue_name, started_at DESC);

CREATE TABLE start_keys (
  agent_name text COLLATE "C" NOT NULL,
  kind       text NOT NULL CHECK (kind IN ('dedup', 'debounce')),
  start_key  text COLLATE "C" NOT NULL,
  run_id     text COLLATE "C" NOT NULL,
  until      timestamptz,                 -- NULL: as long as the run is not over
  look_at    timestamptz NOT NULL,        -- when the sweeper asks whether the key is still needed
  PRIMARY KEY (agent_name, kind, start_key)
);
CREATE INDEX start_keys_old ON start_keys (look_at);

ALTER TABLE runs
  ADD COLUMN queue_name text COLLATE "C",
  ADD COLUMN priority   integer NOT NULL DEFAULT 0,   -- the higher one is first
  ADD COLUMN fair_key   text COLLATE "C",
  ADD COLUMN fair_rank  bigint NOT NULL DEFAULT 0;    -- the how-manieth of its key: keys take turns

-- Sorted as claims take them. Runs that have begun before need no token of a rate limit, so they stand apart.
CREATE INDEX runs_queue_fresh ON runs (queue_name, priority DESC, fair_rank, turn)
  WHERE status = 'pending' AND queue_name IS NOT NULL AND started_at IS NULL;
CREATE INDEX runs_queue_again ON runs (queue_name, priority DESC, fair_rank, turn)
  WHERE status = 'pending' AND queue_name IS NOT NULL AND started_at IS NOT NULL;
CREATE INDEX runs_queue_keys ON runs (queue_name, priority, fair_key, fair_rank)
  WHERE status = 'pending' AND queue_name IS NOT NULL AND started_at IS NULL;
CREATE INDEX runs_queue_later ON runs (queue_name) WHERE status = 'waiting' AND queue_name IS NOT NULL AND started_at IS NULL;
CREATE INDEX runs_queue_held ON runs (queue_name, process_id) WHERE status = 'running' AND queue_name IS NOT NULL;
CREATE INDEX runs_queue_listed ON runs (queue_name, turn DESC) WHERE queue_name IS NOT NULL;

-- Who waits in a queue is woken by its queue, not by the sweeper.
DROP INDEX runs_pending;
CREATE INDEX runs_pending ON runs (dispatched_at) WHERE status = 'pending' AND queue_name IS NULL;

-- A setting's text as a number, NULL for a text that is none within bounds. The bounds are those of perdure/config/keys.py.
CREATE FUNCTION queue_setting(setting text, said text) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  number double precision;
BEGIN
  IF trim(said) !~ '^[0-9]{1,9}(\.[0-9]{1,9})?$' THEN
    RETURN NULL;
  END IF;
  number := trim(said)::double precision;
  IF setting = 'queue_rate_period_seconds' THEN
    RETURN CASE WHEN number > 0 AND number <= 86400 THEN number END;
  END IF;
  RETURN CASE WHEN number = trunc(number) AND number <= 1000000
    AND number >= CASE setting WHEN 'queue_concurrency' THEN 0 ELSE 1 END THEN number END;
END
$$;

-- At commit, for each changed row of a queue's settings. It is named so that it comes after `config_record`: whoever
-- changes configuration holds the revision's row before a queue's.
CREATE FUNCTION config_set_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  place record;
  said text;
  good double precision;
BEGIN
  FOR place IN
    SELECT DISTINCT layer, setting FROM (VALUES
      (CASE WHEN TG_OP <> 'INSERT' THEN OLD.agent_name END, CASE WHEN TG_OP <> 'INSERT' THEN OLD.config_key END),
      (CASE WHEN TG_OP <> 'DELETE' THEN NEW.agent_name END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.config_key END)
    ) AS t (layer, setting)
    WHERE setting IN ('queue_concurrency', 'queue_process_concurrency', 'queue_rate_limit', 'queue_rate_period_seconds')
      AND position('@' IN layer) = 0
  LOOP
    SELECT config_value INTO said FROM agent_configurations
    WHERE agent_name = place.layer AND config_key = place.setting AND is_active;
    good := queue_setting(place.setting, said);
    CONTINUE WHEN said IS NOT NULL AND good IS NULL AND lower(trim(said)) <> 'null';
    INSERT INTO queues (queue_name) VALUES (place.layer) ON CONFLICT DO NOTHING;
    UPDATE queues SET
      concurrency = CASE place.setting WHEN 'queue_concurrency' THEN good::integer ELSE concurrency END,
      process_concurrency = CASE place.setting
        WHEN 'queue_process_concurrency' THEN good::integer ELSE process_concurrency END,
      rate_limit = CASE place.setting WHEN 'queue_rate_limit' THEN good::integer ELSE rate_limit END,
      rate_period = CASE place.setting WHEN 'queue_rate_period_seconds' THEN good ELSE rate_period END
    WHERE queue_name = place.layer;
    IF good IS NOT NULL THEN  -- what runs without a queue counts in its agent's own from here on
      UPDATE runs SET queue_name = runs.agent_name
      FROM (
        SELECT r.run_id FROM runs AS r JOIN processes AS p ON p.process_id = r.process_id AND p.state = 'live'
        WHERE place.layer IN (p.agent_name, '*') AND r.status = 'running' AND r.queue_name IS NULL
        ORDER BY r.run_id FOR NO KEY UPDATE OF r
      ) AS held
      WHERE runs.run_id = held.run_id;
      INSERT INTO queues (queue_name)
      SELECT DISTINCT agent_name FROM processes WHERE place.layer = '*' AND state = 'live' ON CONFLICT DO NOTHING;
    END IF;
  END LOOP;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER config_set_queue_added AFTER INSERT ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.config_key LIKE 'queue\_%') EXECUTE FUNCTION config_set_queue();
CREATE CONSTRAINT TRIGGER config_set_queue_changed AFTER UPDATE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.config_key LIKE 'queue\_%' OR OLD.config_key LIKE 'queue\_%') EXECUTE FUNCTION config_set_queue();
CREATE CONSTRAINT TRIGGER config_set_queue_removed AFTER DELETE ON agent_configurations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (OLD.config_key LIKE 'queue\_%') EXECUTE FUNCTION config_set_queue();

-- What a queue's settings leave open now. `free` and `tokens` are NULL where nothing bounds them; the statement that asks
-- must have begun after the queue's row was locked, for its times too.
CREATE FUNCTION queue_room(queue text) RETURNS TABLE (
  concurrency integer, process_concurrency integer, rate_limit integer, rate_period double precision,
  running bigint, begun bigint, free bigint, tokens bigint)
LANGUAGE sql STABLE AS $$
  WITH said AS (
    SELECT COALESCE(own.concurrency, under.concurrency) AS concurrency,
           COALESCE(own.process_concurrency, under.process_concurrency) AS process_concurrency,
           COALESCE(own.rate_limit, under.rate_limit) AS rate_limit,
           COALESCE(own.rate_period, under.rate_period, 60) AS rate_period
    FROM (SELECT $1 AS queue_name) AS asked
    LEFT JOIN queues AS own ON own.queue_name = asked.queue_name
    LEFT JOIN queues AS under ON under.queue_name = '*'
  ), held AS (
    SELECT count(*) AS running FROM runs AS r WHERE r.queue_name = $1 AND r.status = 'running'
  ), spent AS (
    SELECT count(*) AS begun FROM queue_starts AS s
    WHERE s.queue_name = $1
      AND s.started_at > statement_timestamp() - (SELECT rate_period FROM said) * interval '1 second'
  )
  SELECT said.concurrency, said.process_concurrency, said.rate_limit, said.rate_period, held.running, spent.begun,
         GREATEST(said.concurrency - held.running, CASE WHEN said.concurrency IS NULL THEN NULL ELSE 0 END),
         GREATEST(said.rate_limit - spent.begun, CASE WHEN said.rate_limit IS NULL THEN NULL ELSE 0 END)
  FROM said, held, spent
$$;

-- The workflows that some live process offers, each as agent, workflow and version; `*` for any version.
CREATE FUNCTION queue_offers() RETURNS text[]
LANGUAGE sql STABLE AS $$
  SELECT array_agg(DISTINCT concat_ws(E'\n', p.agent_name, o.workflow, v.version))
  FROM processes AS p, unnest(p.workflows, p.versions) AS o (workflow, version),
       LATERAL (VALUES (o.version), ('*')) AS v (version)
  WHERE p.state = 'live' AND p.lease_until > clock_timestamp()
$$;

-- The next runs of a queue in their order, at most `places` of them: higher priority first, then those that have begun
-- before, then by turns of their keys. Turns of a session that are not due, and code that nobody runs, are passed over.
CREATE FUNCTION queue_line(queue text, places bigint, fresh bigint, agent text)
RETURNS TABLE (nth bigint, run_id text, agent_name text, begun boolean)
LANGUAGE sql STABLE AS $$
  SELECT row_number() OVER (ORDER BY t.priority DESC, t.begun DESC, t.fair_rank, t.turn), t.run_id, t.agent_name, t.begun
  FROM (
    (SELECT r.run_id, r.agent_name, r.priority, TRUE AS begun, r.fair_rank, r.turn FROM runs AS r
     WHERE r.queue_name = $1 AND r.status = 'pending' AND r.started_at IS NOT NULL
       AND ($4 IS NULL OR r.agent_name = $4)
       AND concat_ws(E'\n', r.agent_name, r.workflow, COALESCE(r.version, '*')) = ANY ((SELECT queue_offers())::text[])
       AND (r.session_id IS NULL OR NOT EXISTS (
         SELECT 1 FROM runs AS earlier
         WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
           AND earlier.finished_at IS NULL AND earlier.turn < r.turn))
     ORDER BY r.priority DESC, r.fair_rank, r.turn LIMIT $2)
    UNION ALL
    (SELECT r.run_id, r.agent_name, r.priority, FALSE, r.fair_rank, r.turn FROM runs AS r
     WHERE r.queue_name = $1 AND r.status = 'pending' AND r.started_at IS NULL
       AND ($4 IS NULL OR r.agent_name = $4)
       AND concat_ws(E'\n', r.agent_name, r.workflow, COALESCE(r.version, '*')) = ANY ((SELECT queue_offers())::text[])
       AND (r.session_id IS NULL OR NOT EXISTS (
         SELECT 1 FROM runs AS earlier
         WHERE earlier.agent_name = r.agent_name AND earlier.session_id = r.session_id
           AND earlier.finished_at IS NULL AND earlier.turn < r.turn))
     ORDER BY r.priority DESC, r.fair_rank, r.turn LIMIT LEAST($2, $3))
  ) AS t
  ORDER BY t.priority DESC, t.begun DESC, t.fair_rank, t.turn LIMIT $2
$$;
