-- Push notifications of A2A: who is told of a task's end, or that it needs somebody, in the form of that protocol.
--
--   push_configs  what a client has asked for; `secrets` is JSON {"token", "scheme", "credentials"}, sealed if values are
--   runs.pushes   there may be some: a run without costs nothing at its end
--
-- Their outbox is `callbacks`: a row for each of them, made in the transaction that ends or stops the run.

ALTER TABLE runs ADD COLUMN pushes boolean NOT NULL DEFAULT FALSE;

CREATE TABLE push_configs (
  run_id     text COLLATE "C" NOT NULL,
  config_id  text COLLATE "C" NOT NULL,
  url        text NOT NULL,
  secrets    text NOT NULL,
  form       text NOT NULL CHECK (form IN ('1.0', '0.3')),  -- the version of the protocol that the client speaks
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (run_id, config_id)
);

-- One id for each time that a run comes to a stop: a repeat of the statement makes no second row. No run's id has a '/',
-- so no two runs make the same one.
CREATE FUNCTION push_rows(run text, run_epoch bigint, run_end bigint, run_status text, config text) RETURNS void
LANGUAGE sql AS $$
  INSERT INTO callbacks (callback_id, run_id, end_seq, status, target)
  SELECT 'a2a_' || run || '/' || c.config_id || '/' || run_epoch || '/' || run_status, run, COALESCE(run_end, 0),
         run_status, json_build_object('push', c.config_id, 'url', c.url)
  FROM push_configs AS c WHERE c.run_id = run AND (config IS NULL OR c.config_id = config)
  ON CONFLICT DO NOTHING
$$;

CREATE FUNCTION push_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM push_rows(NEW.run_id, NEW.epoch, NEW.end_seq, NEW.status, NULL);
  RETURN NULL;
END $$;

CREATE TRIGGER runs_push AFTER UPDATE OF status ON runs FOR EACH ROW
  WHEN (NEW.pushes AND NEW.status IS DISTINCT FROM OLD.status
        AND NEW.status IN ('completed', 'failed', 'cancelled', 'dead', 'blocked', 'needs_review'))
  EXECUTE FUNCTION push_end();
