-- Schedules that the code of an agent declares, with @cron and @every: they are rows of `schedules` like all others.
--
--   schedule_declarations  one row for each set of schedules that code of an agent declares, by its hash: since when, and
--                          when a process last said so; one set of an agent holds
--
-- Ways through: a process says what its code declares, at its start and every 10 s -> a scheduler makes rows of the newest
--   set that was said within a minute (holds), and retires those that it lacks.
-- Before, agents ticked themselves, and cron_marks had the last moment of each: the first declaration goes on from there.
-- Processes of before may still do so beside; both make the same run of a moment. A later version drops cron_marks.

CREATE TABLE schedule_declarations (
  agent_name text COLLATE "C" NOT NULL,
  digest     text COLLATE "C" NOT NULL,
  crons      json NOT NULL,
  since      timestamptz NOT NULL DEFAULT now(),
  seen_at    timestamptz NOT NULL DEFAULT now(),
  holds      boolean NOT NULL DEFAULT FALSE,
  PRIMARY KEY (agent_name, digest)
);

ALTER TABLE schedules
  ADD COLUMN declared boolean NOT NULL DEFAULT FALSE,  -- by the code of its agent
  ADD COLUMN retired_at timestamptz,                   -- since when no code declares it any more; next_at is NULL
  DROP CONSTRAINT schedules_overlap_check,
  ADD CONSTRAINT schedules_overlap_check CHECK (overlap IN ('allow', 'skip', 'buffer_one'));

CREATE OR REPLACE FUNCTION audit_schedule() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    PERFORM audit(NULL, 'schedule.delete', OLD.name, OLD.agent_name);
  ELSIF TG_OP = 'UPDATE' AND OLD.retired_at IS NULL AND NEW.retired_at IS NOT NULL THEN
    PERFORM audit(NULL, 'schedule.retire', NEW.name, NEW.agent_name);
  ELSIF TG_OP = 'UPDATE' AND NEW.paused IS DISTINCT FROM OLD.paused THEN
    PERFORM audit(NULL, CASE WHEN NEW.paused THEN 'schedule.pause' ELSE 'schedule.resume' END, NEW.name, NEW.agent_name);
  ELSE
    PERFORM audit(NULL, 'schedule.set', NEW.name, NEW.agent_name);
  END IF;
  RETURN NULL;
END
$$;
DROP TRIGGER schedules_audit_change ON schedules;
CREATE TRIGGER schedules_audit_change
AFTER UPDATE OF agent_name, workflow, task, cron, timezone, paused, retired_at ON schedules
FOR EACH ROW EXECUTE FUNCTION audit_schedule();
