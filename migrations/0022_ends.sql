-- Ends of runs: who is called back, and which ends were perhaps not told.
--
--   runs.callback   whom to tell of the end: {"url", "secret"} or {"subject"}
--   runs.untold     the end is committed, and whoever was to publish its event may not have lived to do so
--   callbacks       the outbox: a row for each end of a run with a callback, made in the transaction of that end,
--                   whichever statement ends the run; the scheduler delivers it, at least once

ALTER TABLE runs
  ADD COLUMN callback json,
  ADD COLUMN untold   boolean NOT NULL DEFAULT FALSE;

CREATE INDEX runs_to_tell ON runs (finished_at) WHERE untold;
CREATE INDEX runs_ended   ON runs USING brin (finished_at) WITH (pages_per_range = 16, autosummarize = on);

CREATE TABLE callbacks (
  callback_id  text COLLATE "C" PRIMARY KEY,  -- of the run and its end: the id that the receiver sees
  run_id       text COLLATE "C" NOT NULL,
  end_seq      bigint NOT NULL,
  status       text NOT NULL,                 -- how the run ended
  target       json NOT NULL,
  state        text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'delivered', 'given_up')),
  attempts     integer NOT NULL DEFAULT 0,
  next_try     timestamptz NOT NULL DEFAULT now(),
  last_error   text,
  created_at   timestamptz NOT NULL DEFAULT now(),
  delivered_at timestamptz
);
CREATE INDEX callbacks_due  ON callbacks (next_try) WHERE state = 'due';
CREATE INDEX callbacks_runs ON callbacks (run_id);

CREATE FUNCTION call_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO callbacks (callback_id, run_id, end_seq, status, target)
  VALUES ('run_' || NEW.run_id || '_' || COALESCE(NEW.end_seq, 0), NEW.run_id, COALESCE(NEW.end_seq, 0), NEW.status,
          NEW.callback)
  ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;

CREATE TRIGGER runs_call_back AFTER UPDATE OF finished_at ON runs FOR EACH ROW
  WHEN (NEW.callback IS NOT NULL AND NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL)
  EXECUTE FUNCTION call_back();
