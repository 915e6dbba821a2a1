-- Who did what: to runs, approvals, keys and schedules; sealed in a chain. What was done to configuration stands in
-- config_history, which is sealed in a chain of its own: writing configuration costs nothing more than before.
--
--   audit_log     one row an act, written by triggers in the transaction of the act, never changed
--   audit_seals   one row a block of acts: the hash of each, and a digest over them and the block before
--   audit_heads   one row a chain: its newest block, so that a chain cut short is noticed
--
-- Ways through: an act commits with its row -> what is new is sealed every second, in blocks, by the scheduler and the
--   ConfigManager -> verify reads all again -> rows older than is kept go, by audit_prune, and their seals stay.
-- The chain costs an act nothing: no lock is shared by two of them. Who acts says so in `perdure.actor`; what the database
-- itself knows is sql_user.

CREATE TABLE audit_log (
  audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       timestamptz NOT NULL,
  actor    text NOT NULL,          -- as whoever passed the act on said: the name of a key, of a person
  sql_user text NOT NULL,          -- the role that did it
  act      text NOT NULL,
  subject  text NOT NULL,          -- the run, key or schedule
  detail   text NOT NULL           -- names alone, never a value of a run
);
CREATE INDEX audit_log_subject ON audit_log (subject, audit_id);

CREATE TABLE audit_seals (
  chain      text NOT NULL CHECK (chain IN ('acts', 'configuration')),
  seq        bigint NOT NULL,
  first_at   timestamptz NOT NULL,
  last_at    timestamptz NOT NULL,
  high       bigint NOT NULL,      -- the highest audit_id, or revision, that was seen
  ids        bigint[] NOT NULL,    -- of each act; of configuration, the revision of each row
  gaps       bigint[] NOT NULL,    -- ids below `high` whose transactions may still commit
  gaps_since timestamptz[] NOT NULL,
  hashes     bytea NOT NULL,       -- 64 bytes a row: of what it says, and of its values
  key_id     text NOT NULL,        -- of the secret under which the digest is made; empty for none
  digest     bytea NOT NULL,
  sealed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (chain, seq)
);

CREATE INDEX audit_seals_last_at ON audit_seals (chain, last_at);

CREATE TABLE audit_heads (
  chain  text PRIMARY KEY,
  seq    bigint NOT NULL,
  digest bytea NOT NULL
);

-- SECURITY DEFINER: nobody needs a right on the log to act, and so nobody can write what was not done.
CREATE FUNCTION audit(who text, what text, whom text, more text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  INSERT INTO audit_log (at, actor, sql_user, act, subject, detail)
  VALUES (clock_timestamp(), coalesce(nullif(who, ''), nullif(current_setting('perdure.actor', TRUE), ''), session_user),
          session_user, what, whom, coalesce(more, ''))
$$;
REVOKE EXECUTE ON FUNCTION audit(text, text, text, text) FROM PUBLIC;

-- What people do to runs that are there. Runs that begin, signals, and all that a run does itself are rows already.
CREATE FUNCTION audit_new_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM audit(NULL, 'run.' || NEW.origin_kind, NEW.origin_run_id, NEW.run_id);
  RETURN NULL;
END
$$;
CREATE TRIGGER runs_audit_new AFTER INSERT ON runs FOR EACH ROW
WHEN (NEW.origin_kind IS NOT NULL) EXECUTE FUNCTION audit_new_run();

CREATE FUNCTION audit_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM audit(NULL, CASE
    WHEN OLD.cancel_reason IS NULL AND NEW.cancel_reason IS NOT NULL THEN
      CASE WHEN NEW.error ->> 'type' = 'Terminated' THEN 'run.terminate' ELSE 'run.cancel' END
    WHEN NEW.pause_asked AND NOT OLD.pause_asked THEN 'run.pause'
    ELSE 'run.resume' END, NEW.run_id, NEW.agent_name);
  RETURN NULL;
END
$$;
-- Named columns: the statements of a run's way (claim, flush) do not set them, and so pass by.
CREATE TRIGGER runs_audit AFTER UPDATE OF cancel_reason, pause_asked ON runs FOR EACH ROW
WHEN (OLD.cancel_reason IS NULL AND NEW.cancel_reason IS NOT NULL
      OR NEW.pause_asked AND NOT OLD.pause_asked
      OR OLD.status IN ('failed', 'dead', 'blocked', 'paused', 'needs_review') AND NEW.status IN ('pending', 'waiting')
      OR OLD.pause_asked AND NOT NEW.pause_asked AND OLD.status = 'running' AND NEW.status = 'running'
         AND NEW.cancel_reason IS NULL)
EXECUTE FUNCTION audit_run();

CREATE FUNCTION audit_approval() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM audit(NEW.decided_by, 'approval.' || NEW.status, NEW.run_id, NEW.call_id || ' ' || NEW.tool);
  RETURN NULL;
END
$$;
CREATE TRIGGER approvals_audit AFTER UPDATE OF status ON approvals FOR EACH ROW
WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION audit_approval();

CREATE FUNCTION audit_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    PERFORM audit(NULL, 'key.create', NEW.key_id, concat_ws(' ', NEW.name, NEW.role, NEW.tenant));
  ELSIF TG_OP = 'DELETE' THEN
    PERFORM audit(NULL, 'key.delete', OLD.key_id, OLD.name);
  ELSIF NEW.revoked_at IS NOT NULL AND OLD.revoked_at IS NULL THEN
    PERFORM audit(NULL, 'key.revoke', NEW.key_id, NEW.name);
  ELSE
    PERFORM audit(NULL, 'key.change', NEW.key_id, concat_ws(' ', NEW.name, NEW.role, NEW.tenant));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER keys_audit AFTER INSERT OR DELETE ON gateway_keys FOR EACH ROW EXECUTE FUNCTION audit_key();
CREATE TRIGGER keys_audit_change AFTER UPDATE ON gateway_keys FOR EACH ROW
WHEN ((OLD.key_id, OLD.name, OLD.hash, OLD.role, OLD.tenant, OLD.agents, OLD.rate_limit, OLD.expires_at, OLD.revoked_at)
      IS DISTINCT FROM
      (NEW.key_id, NEW.name, NEW.hash, NEW.role, NEW.tenant, NEW.agents, NEW.rate_limit, NEW.expires_at, NEW.revoked_at))
EXECUTE FUNCTION audit_key();

CREATE FUNCTION audit_schedule() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    PERFORM audit(NULL, 'schedule.delete', OLD.name, OLD.agent_name);
  ELSIF TG_OP = 'UPDATE' AND NEW.paused IS DISTINCT FROM OLD.paused THEN
    PERFORM audit(NULL, CASE WHEN NEW.paused THEN 'schedule.pause' ELSE 'schedule.resume' END, NEW.name, NEW.agent_name);
  ELSE
    PERFORM audit(NULL, 'schedule.set', NEW.name, NEW.agent_name);
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER schedules_audit AFTER INSERT OR DELETE ON schedules FOR EACH ROW EXECUTE FUNCTION audit_schedule();
CREATE TRIGGER schedules_audit_change AFTER UPDATE OF agent_name, workflow, task, cron, timezone, paused ON schedules
FOR EACH ROW EXECUTE FUNCTION audit_schedule();

-- The log is only added to.
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('perdure.audit_prune', TRUE) = 'on' THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'the audit log is only added to' USING ERRCODE = 'feature_not_supported',
    HINT = 'Rows older than is kept go by themselves (PERDURE_AUDIT_DAYS).';
END
$$;
CREATE TRIGGER audit_log_refuse BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_log_refuse_truncate BEFORE TRUNCATE ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_seals_refuse BEFORE UPDATE OR DELETE ON audit_seals FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_seals_refuse_truncate BEFORE TRUNCATE ON audit_seals
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

-- Removes acts of at most `most` blocks whose newest is older than `days`; how many it was.
CREATE FUNCTION audit_prune(days double precision, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  gone bigint;
BEGIN
  IF days < 1 THEN
    RAISE EXCEPTION 'the audit log is kept for a day at least' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM set_config('perdure.audit_prune', 'on', TRUE);
  DELETE FROM audit_log WHERE audit_id IN (
    SELECT unnest(old.ids) FROM (
      SELECT s.ids FROM audit_seals AS s
      WHERE s.chain = 'acts' AND s.last_at < now() - days * interval '1 day'
        AND s.last_at >= (SELECT l.at FROM audit_log AS l ORDER BY l.audit_id LIMIT 1)
      ORDER BY s.last_at LIMIT most) AS old);
  GET DIAGNOSTICS gone = ROW_COUNT;
  PERFORM set_config('perdure.audit_prune', '', TRUE);
  RETURN gone;
END
$$;
REVOKE EXECUTE ON FUNCTION audit_prune(double precision, integer) FROM PUBLIC;
