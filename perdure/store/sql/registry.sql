-- Which agents are alive.

-- name: live_agents
SELECT agent_name, count(*) AS replicas, min(started_at) AS since
FROM processes WHERE state = 'live' AND lease_until > now()
GROUP BY agent_name ORDER BY agent_name

-- name: alive
SELECT DISTINCT agent_name FROM processes
WHERE state = 'live' AND lease_until > now() AND agent_name = ANY ($1::text[])
