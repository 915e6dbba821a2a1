-- The row of a run's last step, with the run's end: what `journal_row` (0043) does, and the block `move` for one run.
--
-- Says whether others than its parent wait for the end, or NULL when the run has not ended: another row came behind this
-- one, and its code is to hear of that first.

CREATE FUNCTION journal_last_row(
  of_run text, of_epoch bigint, of_seq bigint, at_path text, of_kind text, of_name text, of_hash text, of_attempt integer,
  on_revision bigint, began double precision, ended double precision, outcome_is json, called_with text, output_is json
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  others boolean;
BEGIN
  PERFORM journal_row(of_run, of_epoch, of_seq, at_path, of_kind, of_name, of_hash, of_attempt, on_revision, began, ended,
                      outcome_is, called_with);
  UPDATE runs SET status = 'completed', output = output_is, error = NULL, end_seq = of_seq + 1, finished_at = now()
  WHERE run_id = of_run AND NOT EXISTS (
    SELECT FROM journal AS j WHERE j.run_id = of_run AND j.shelf = runs.shelf AND j.seq > of_seq)
  RETURNING joined INTO others;
  RETURN others;
END $$;
