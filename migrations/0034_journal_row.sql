-- The row of a step, written by the statement that also does the step's work: one round trip and one commit for both.
--
-- It is the fence and the insert of the block `flush` for one row: the run is locked if it is still the writer's, and
-- anything else undoes the whole statement. So does a row of that seq, which an earlier try of the same statement has
-- committed without an answer.

CREATE FUNCTION journal_row(
  of_run text, of_epoch bigint, of_seq bigint, at_path text, of_kind text, of_name text, of_hash text, of_attempt integer,
  on_revision bigint, began double precision, ended double precision, outcome_is json
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM runs
  WHERE run_id = of_run AND epoch = of_epoch AND status IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'run % is not held in epoch % any more', of_run, of_epoch USING ERRCODE = 'PD001';
  END IF;
  INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, result, attempt, config_revision, started_at,
                       finished_at, epoch)
  VALUES (of_run, of_seq, at_path, of_kind, of_name, of_hash, 'ok', outcome_is, of_attempt, on_revision,
          to_timestamp(began), to_timestamp(ended), of_epoch);
  RETURN outcome_is::text;
END $$;
