-- A run may be claimed in the commit that accepts it (block `accept` in perdure/store/sql/runs.sql).

-- Whether no turn of a session is under way. VOLATILE, so that it looks anew when it is called: the statement that calls
-- it has waited for the session's lock, and what was committed meanwhile is not in its own snapshot.
CREATE FUNCTION session_rests(agent text, session text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  RETURN NOT EXISTS (
    SELECT FROM runs AS r WHERE r.agent_name = agent AND r.session_id = session AND r.finished_at IS NULL);
END
$$;
