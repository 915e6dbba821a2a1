-- Who may do what in Perdure's database. `perdure deploy postgres-roles` runs it as the owner of the schema, in one
-- transaction; psql can, too. It may be run any time again: it takes away what is not listed here. After `perdure migrate`
-- run it again, so that new tables are given to those who need them.
--
--   the owner                who made the database and runs `perdure migrate`; no service logs in as it
--   perdure_config_manager   the ConfigManager: the only one that writes configuration
--   perdure_scheduler        the scheduler: runs, journals, queues, schedules, callbacks
--   perdure_gateway          the gateway: whose key it is, which runs are whose, who is told of an end
--   perdure_operator         people: write configuration by SQL, make and revoke keys; read all, write nothing else
--   perdure_agents           a group. Each agent is a role of its own in it, perdure_agent_<name>: it sees the rows of its
--                            own configuration, conversations, approvals and memories alone (row level security)
--
-- Runs and their journals are shared by all agents: an agent starts children that others execute, and wakes parents.
-- Postgres keeps no agent from the run of another one there; it keeps it from all that is not a run's.

DO $$
DECLARE
  role text;
BEGIN
  -- Roles belong to the whole cluster; somebody else may have made them, or be making them at this moment.
  FOREACH role IN ARRAY ARRAY['perdure_config_manager', 'perdure_scheduler', 'perdure_gateway', 'perdure_operator',
                              'perdure_agents'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role);
    BEGIN
      EXECUTE format(CASE WHEN role = 'perdure_agents' THEN 'CREATE ROLE %I NOLOGIN' ELSE 'CREATE ROLE %I LOGIN' END, role);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
  END LOOP;
END
$$;

-- Which agent asks: the name of its role. NULL for the group itself, which then sees no row.
CREATE OR REPLACE FUNCTION perdure_asking_agent() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN starts_with(current_user::text, 'perdure_agent_') THEN substr(current_user::text, 15) END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public
  FROM PUBLIC, perdure_config_manager, perdure_scheduler, perdure_gateway, perdure_operator, perdure_agents;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public
  FROM PUBLIC, perdure_config_manager, perdure_scheduler, perdure_gateway, perdure_operator, perdure_agents;
GRANT USAGE ON SCHEMA public
  TO perdure_config_manager, perdure_scheduler, perdure_gateway, perdure_operator, perdure_agents;

-- The ConfigManager. History, heads and the counter are written by triggers that run as the owner.
GRANT SELECT, INSERT, UPDATE, DELETE ON agent_configurations, config_redis TO perdure_config_manager;
GRANT SELECT, UPDATE ON config_broadcast, config_counter, config_redis_mark, config_secret_keys TO perdure_config_manager;
GRANT SELECT ON config_heads TO perdure_config_manager;
GRANT SELECT, UPDATE, DELETE ON config_history TO perdure_config_manager;
GRANT SELECT, INSERT, UPDATE ON config_schemas, config_rollouts TO perdure_config_manager;
GRANT SELECT, UPDATE (values) ON config_snapshots TO perdure_config_manager;
GRANT SELECT (run_id, agent_name, process_id, status, finished_at) ON runs TO perdure_config_manager;
GRANT SELECT ON processes TO perdure_config_manager;

-- The scheduler.
GRANT SELECT, INSERT, UPDATE, DELETE ON runs, journal, signals, processes, payloads, payload_uses, callbacks, schedules,
  queues, queue_starts, start_keys, push_configs, sessions, session_messages, session_results, approvals, tool_starts
  TO perdure_scheduler;
GRANT SELECT, DELETE ON config_snapshots, dead_letters, cron_marks TO perdure_scheduler;
GRANT SELECT, UPDATE, DELETE ON schedule_declarations TO perdure_scheduler;
GRANT SELECT ON agent_configurations TO perdure_scheduler;
GRANT EXECUTE ON FUNCTION make_shelf(integer, timestamptz, timestamptz), drop_shelf(integer) TO perdure_scheduler;

-- Seals of the audit log: the scheduler's of acts, the ConfigManager's of configuration.
GRANT SELECT ON audit_log TO perdure_scheduler;
GRANT EXECUTE ON FUNCTION audit_prune(double precision, integer) TO perdure_scheduler;
GRANT EXECUTE ON FUNCTION audit_empty(text, integer) TO perdure_scheduler, perdure_config_manager;
GRANT SELECT, INSERT ON audit_seals TO perdure_scheduler, perdure_config_manager;
GRANT SELECT, INSERT, UPDATE ON audit_heads TO perdure_scheduler, perdure_config_manager;

-- The gateway. Keys are made and revoked by people; it notes when one was used.
GRANT SELECT, UPDATE (last_used_at) ON gateway_keys TO perdure_gateway;
GRANT SELECT, UPDATE (pushes) ON runs TO perdure_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON push_configs TO perdure_gateway;
GRANT SELECT, INSERT, DELETE ON callbacks TO perdure_gateway;
GRANT SELECT ON processes TO perdure_gateway;

-- Agents. What they may not: configuration but their own to read, keys, schedules, callbacks that are due, the schema.
GRANT SELECT ON agent_configurations TO perdure_agents;
GRANT SELECT, INSERT ON config_snapshots, journal, callbacks, dead_letters TO perdure_agents;
GRANT SELECT (run_id, config_id, url) ON push_configs TO perdure_agents;
GRANT SELECT, INSERT, UPDATE ON runs, processes, signals, payloads, payload_uses, queues, approvals,
  schedule_declarations, cron_marks TO perdure_agents;
GRANT SELECT, INSERT, UPDATE, DELETE ON sessions, session_messages, session_results, start_keys TO perdure_agents;
GRANT SELECT, INSERT, DELETE ON queue_starts, tool_starts TO perdure_agents;
GRANT USAGE ON SEQUENCE process_locks TO perdure_agents;

-- People.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO perdure_operator;
GRANT INSERT, UPDATE, DELETE ON agent_configurations TO perdure_operator;
GRANT INSERT, UPDATE (revoked_at) ON gateway_keys TO perdure_operator;

-- Tables that are there since a later version, or on first use alone.
DO $$
DECLARE
  said record;
BEGIN
  FOR said IN
    SELECT * FROM (VALUES
      ('memories', 'SELECT, INSERT, DELETE', 'perdure_agents'),
      ('retention', 'SELECT, INSERT, UPDATE, DELETE', 'perdure_scheduler'),
      ('retention', 'SELECT', 'perdure_agents'),
      ('journal_shelves', 'SELECT, INSERT, UPDATE, DELETE', 'perdure_scheduler'),
      ('journal_shelves', 'SELECT', 'perdure_agents')
    ) AS given (relation, rights, role)
    WHERE to_regclass(relation) IS NOT NULL
  LOOP
    EXECUTE format('GRANT %s ON %I TO %I', said.rights, said.relation, said.role);
  END LOOP;
END
$$;

-- An agent's rows are its own. The owner and the services see all.
DO $$
DECLARE
  place text;
BEGIN
  FOREACH place IN ARRAY ARRAY['agent_configurations', 'sessions', 'session_messages', 'session_results', 'approvals',
                               'cron_marks', 'schedule_declarations', 'dead_letters', 'memories'] LOOP
    CONTINUE WHEN to_regclass(place) IS NULL;
    IF NOT (SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass(place)) THEN
      EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', place);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_policies WHERE tablename = place AND policyname = 'perdure_services') THEN
      EXECUTE format('CREATE POLICY perdure_services ON %I TO perdure_config_manager, perdure_scheduler, perdure_gateway, '
                     'perdure_operator USING (TRUE) WITH CHECK (TRUE)', place);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_policies WHERE tablename = place AND policyname = 'perdure_own_rows') THEN
      EXECUTE format(CASE WHEN place = 'agent_configurations' THEN
          'CREATE POLICY perdure_own_rows ON %I FOR SELECT TO perdure_agents '
          'USING (agent_name = ''*'' OR split_part(agent_name, ''@'', 1) = (SELECT perdure_asking_agent()))'
        ELSE
          'CREATE POLICY perdure_own_rows ON %I TO perdure_agents '
          'USING (agent_name = (SELECT perdure_asking_agent())) WITH CHECK (agent_name = (SELECT perdure_asking_agent()))'
        END, place);
    END IF;
  END LOOP;
END
$$;
