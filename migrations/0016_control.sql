-- Pausing runs, and where a run came from.
--
--   runs.pause_asked    somebody asked for a pause: the run is paused, or will be once the steps under way are over
--   runs.origin_run_id  the run that this one is a fork or a restart of; origin_kind says which
--   runs_stopped        finds, among very many completed runs, those that are of interest to whoever repairs

ALTER TABLE runs
  ADD COLUMN pause_asked   boolean NOT NULL DEFAULT FALSE,
  ADD COLUMN origin_run_id text COLLATE "C",
  ADD COLUMN origin_kind   text CHECK (origin_kind IN ('fork', 'restart'));

CREATE INDEX runs_origins ON runs (origin_run_id) WHERE origin_run_id IS NOT NULL;
CREATE INDEX runs_stopped ON runs (turn)
  WHERE status IN ('failed', 'dead', 'cancelled', 'blocked', 'needs_review', 'paused');
