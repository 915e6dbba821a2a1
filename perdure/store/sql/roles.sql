-- Roles of single agents, and passwords. Names of roles cannot be parameters: these blocks give the statement to execute.

-- name: make_agent
-- Nothing for a role that is there.
SELECT CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = $1::text) THEN
  format('GRANT perdure_agents TO %I', $1::text)
ELSE format('CREATE ROLE %I LOGIN IN ROLE perdure_agents', $1::text) END

-- name: set_password
-- $2 is a verifier, so that the password itself reaches neither the server nor its log.
SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)

-- name: may_make_roles
SELECT rolsuper OR rolcreaterole AS roles,
       EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.runs') AND pg_has_role(current_user, relowner, 'USAGE')) AS owner,
       to_regclass('public.runs') IS NOT NULL AS migrated
FROM pg_roles WHERE rolname = current_user
