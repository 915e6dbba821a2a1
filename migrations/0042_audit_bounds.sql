-- Seals whose rows are all gone, because they were older than they are kept, keep their place in the chain and lose the
-- hashes of their rows: audit_seals.content is what the digest is made over. No release has sealed anything yet: the chains
-- begin anew.

ALTER TABLE audit_seals DISABLE TRIGGER audit_seals_refuse;
DELETE FROM audit_seals;
DELETE FROM audit_heads;
ALTER TABLE audit_seals ENABLE TRIGGER audit_seals_refuse;
ALTER TABLE audit_seals ADD COLUMN content bytea NOT NULL;  -- the hash of ids and hashes
CREATE INDEX audit_seals_full ON audit_seals (chain, high) WHERE ids <> '{}';

CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'TRUNCATE' AND current_setting('perdure.audit_prune', TRUE) = 'on' THEN
    RETURN coalesce(NEW, OLD);
  END IF;
  RAISE EXCEPTION 'the audit log is only added to' USING ERRCODE = 'feature_not_supported',
    HINT = 'Rows older than is kept go by themselves (PERDURE_AUDIT_DAYS).';
END
$$;

-- Empties at most `most` seals of a chain that have no row any more; how many it was.
CREATE FUNCTION audit_empty(which text, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  gone bigint;
  below bigint;
BEGIN
  IF which = 'acts' THEN
    below := coalesce((SELECT min(audit_id) FROM audit_log), 9223372036854775807);
  ELSE
    SELECT pruned_to + 1 INTO below FROM config_broadcast;
  END IF;
  PERFORM set_config('perdure.audit_prune', 'on', TRUE);
  UPDATE audit_seals AS s SET ids = '{}', hashes = '' WHERE s.chain = which AND s.seq IN (
    SELECT f.seq FROM audit_seals AS f
    WHERE f.chain = which AND f.ids <> '{}' AND f.high < below
      AND (which = 'acts' OR NOT EXISTS (SELECT FROM config_history AS h WHERE h.revision = ANY(f.ids)))
    ORDER BY f.high LIMIT most);
  GET DIAGNOSTICS gone = ROW_COUNT;
  PERFORM set_config('perdure.audit_prune', '', TRUE);
  RETURN gone;
END
$$;
REVOKE EXECUTE ON FUNCTION audit_empty(text, integer) FROM PUBLIC;
