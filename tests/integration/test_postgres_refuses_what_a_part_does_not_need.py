"""Every forbidden act of every Postgres role is refused by a server with the shipped file; every needed one works."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from nats.aio.client import Client

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.migrate import migrate
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.roles import apply_roles, role_of, verifier
from tests.docs import ROOT
from tests.secured_platform import STREAM, over_nats_alone, secured_platform, walk
from tests.support import eventually

AGENTS = ("greeter", "mailer", "desk")
GREETER = "greeter"
EVERYBODY = ("config-manager", "scheduler", "gateway", "operator", GREETER)
# What each role may not do, and why it would be wrong.
FORBIDDEN: dict[str, dict[str, str]] = {
    GREETER: {
        "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('greeter', 'k', 'v')": "set",
        "UPDATE agent_configurations SET config_value = 'x'": "change configuration",
        "DELETE FROM agent_configurations": "remove configuration",
        "UPDATE config_history SET new_value = 'x'": "rewrite what was",
        "SELECT * FROM config_history": "read what others' settings were",
        "UPDATE config_counter SET revision = 0": "turn revisions back",
        "SELECT * FROM gateway_keys": "read hashes of keys",
        "INSERT INTO gateway_keys (key_id, name, hash, role) VALUES ('k', 'n', '\\x00', 'admin')": "make itself a key",
        "SELECT * FROM schedules": "read schedules",
        "UPDATE callbacks SET target = '{}'": "send callbacks elsewhere",
        "SELECT secrets FROM push_configs": "read secrets of those who are told",
        "DELETE FROM runs": "remove runs",
        "DELETE FROM journal": "unmake what happened",
        "UPDATE journal SET result = '1'": "change what happened",
        "TRUNCATE sessions": "empty a table",
        "ALTER TABLE runs ADD COLUMN x text": "migrate",
        "SELECT * FROM audit_log": "read who did what",
        "SELECT audit_prune(1, 1)": "remove who did what",
        "SELECT audit_empty('acts', 1)": "empty the chain",
    },
    "config-manager": {
        "INSERT INTO runs (run_id) VALUES ('x')": "make runs",
        "SELECT task FROM runs": "read tasks",
        "SELECT * FROM journal": "read journals",
        "SELECT * FROM session_messages": "read conversations",
        "SELECT * FROM gateway_keys": "read hashes of keys",
        "DELETE FROM processes": "take processes for lost",
    },
    "scheduler": {
        "UPDATE agent_configurations SET config_value = 'x'": "change configuration",
        "SELECT * FROM gateway_keys": "read hashes of keys",
        "UPDATE config_broadcast SET revision = 0": "broadcast in the ConfigManager's place",
        "SELECT * FROM config_history": "read what settings were",
    },
    "gateway": {
        "INSERT INTO gateway_keys (key_id, name, hash, role) VALUES ('k', 'n', '\\x00', 'admin')": "make keys",
        "UPDATE gateway_keys SET revoked_at = NULL": "bring a revoked key back",
        "UPDATE gateway_keys SET role = 'admin'": "raise a key",
        "SELECT * FROM agent_configurations": "go past the ConfigManager",
        "UPDATE runs SET status = 'completed'": "end runs",
        "SELECT * FROM journal": "read journals",
        "SELECT * FROM session_messages": "read conversations past the scheduler",
        "UPDATE approvals SET status = 'approved'": "approve past the scheduler",
    },
    "operator": {
        "UPDATE runs SET status = 'completed'": "end runs past the engine",
        "UPDATE journal SET result = '1'": "change what happened",
        "UPDATE approvals SET status = 'approved'": "approve past the scheduler",
        "UPDATE config_history SET new_value = 'x'": "rewrite what was",
        "UPDATE gateway_keys SET hash = '\\x00'": "take over a key",
        "DELETE FROM gateway_keys": "remove a key without a trace",
        "TRUNCATE agent_configurations": "empty the table",
    },
}
NOBODY = {  # what none of them may
    "CREATE TABLE mine (x integer)": "make tables",
    "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'": "make functions",
    "ALTER TABLE agent_configurations DISABLE TRIGGER ALL": "switch checks off",
    "ALTER TABLE sessions DISABLE ROW LEVEL SECURITY": "see everybody's rows",
    "DROP TABLE runs": "remove a table",
    "UPDATE schema_migrations SET name = 'x'": "say what was migrated",
    "CREATE ROLE somebody": "make users",
    "SET ROLE perdure": "become the owner",
    "SELECT audit('Anna', 'run.cancel', 'r', '')": "say that somebody did what was not done",
    "INSERT INTO audit_log (at, actor, sql_user, act, subject, detail) VALUES (now(), '', '', '', '', '')": "the same",
    "UPDATE audit_log SET actor = 'Anna'": "change who did what",
    "DELETE FROM audit_seals": "remove the chain",
    "SET session_replication_role = replica": "switch triggers off",
    "COPY agent_configurations TO PROGRAM 'cat'": "run programs",
}
# The modules whose statements each of them executes.
MODULES = {
    "config-manager": ["config_manager/*.py", "perdure/store/audit_seals.py", "perdure/store/audit.py"],
    "scheduler": [
        "services/scheduler/*.py",
        "perdure/store/audit_seals.py",
        "perdure/store/audit.py",
        "perdure/schedules/*.py",
        *(f"perdure/engine/{name}.py" for name in ("control", "bulk", "runs", "accepting")),
    ],
    "gateway": ["perdure/edge/*.py", "perdure/agent/registry.py"],
    "operator": ["perdure/cli/audit.py", "perdure/store/audit.py"],
    GREETER: ["perdure/engine/*.py", "perdure/agent/*.py", "perdure/schedules/declared.py"],
}
HOLDERS = {"queries", "SQL", "CONFIG"}  # what a module may have from another one
OTHERS = {  # blocks of those modules that somebody else executes
    "config-manager": {"prune", "new_acts", "acts_of", "act_ids", "waiting", "list"},
    "scheduler": {"new_changes", "changes_of", "change_ids", "change_marks", "declare"},
    "gateway": {"make_key", "list_keys", "revoke_key"},
    GREETER: {
        *("replace_rows", "resume", "create_table"),
        *("news", "lock_declarations", "newest", "declared_due", "hold", "set_declared", "retire", "take_marks"),
    },
}


@pytest.fixture
async def secured(settings: Settings) -> Settings:
    await apply_roles(settings, AGENTS, {})
    return settings


def place_of(settings: Settings, user: str) -> Settings:
    """`settings` of the process of `user`; whoever needs no Postgres is nobody there."""
    known = user in (*EVERYBODY, *AGENTS)
    url = re.sub(r"//[^@]*@", f"//{role_of(user) if known else 'nobody'}@", settings.database_url)
    return settings.model_copy(update={"database_url": url, "instance_id": f"{user}-1"})


@asynccontextmanager
async def as_role(settings: Settings, user: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(place_of(settings, user).database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_what_a_role_may_not_do_is_refused(secured: Settings):
    for user in EVERYBODY:
        async with as_role(secured, user) as connection:
            for statement, why in {**FORBIDDEN[user], **NOBODY}.items():
                try:
                    await connection.execute(statement)
                except asyncpg.InsufficientPrivilegeError:
                    continue
                pytest.fail(f"{user} may {why}: {statement}")


def statements(user: str) -> Iterator[tuple[str, str, str]]:
    """(file, block, SQL) of what the modules of `user` execute."""
    sources = [path.read_text() for pattern in MODULES[user] for path in sorted(ROOT.glob(pattern))]
    loaded = [dict(re.findall(r'(\w+)(?:: [^=\n]+)? = load_queries\("(\w+\.sql)"\)', source)) for source in sources]
    everything = sorted({file for files in loaded for file in files.values()})
    for source, files in zip(sources, loaded, strict=True):
        for holder, block in re.findall(r'(\w+)\["([a-z_]+)"\]', source):
            if block not in OTHERS.get(user, ()):
                for file in [files[holder]] if holder in files else everything if holder in HOLDERS else []:
                    if block in load_queries(file):
                        yield file, block, load_queries(file)[block]


async def test_every_statement_of_every_part_is_within_its_rights(secured: Settings):
    seen, refused = 0, []
    for user in EVERYBODY:
        async with as_role(secured, user) as connection:
            for file, block, text in dict.fromkeys(statements(user)):
                for each in re.sub(r"--.*", "", text).split(";"):
                    if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", each):
                        continue
                    try:
                        await connection.execute(f"EXPLAIN (GENERIC_PLAN) {each}")
                    except asyncpg.InsufficientPrivilegeError as error:
                        refused.append(f"{user} executes {block} of {file}: {error}")
                    seen += 1
    assert refused == []
    assert seen > 200


async def test_a_platform_whose_parts_are_roles_of_their_own_does_all_it_is_for(secured: Settings, nc: Client):
    def place(user: str) -> Settings:
        return place_of(secured, user)

    await nc.jetstream().add_stream(name=STREAM, subjects=["orders.*"])
    await nc.publish("orders.new", b'{"item": "tea"}')
    async with secured_platform(place) as door:
        await walk(door, place)
        await over_nats_alone(nc)
        async with as_role(secured, "operator") as people:
            await people.execute("UPDATE agent_configurations SET config_value = 'by SQL' WHERE agent_name = 'greeter'")

            async def heard() -> bool:
                found = await door.get("/config/greeter")
                return bool(found["configurations"]["greeting"] == "by SQL")

            await eventually(heard)
            said = await people.fetchrow(
                "SELECT changed_by, sql_user FROM config_history ORDER BY revision DESC LIMIT 1"
            )
            assert tuple(said) == ("perdure_operator", "perdure_operator")


async def test_an_agent_sees_the_rows_of_its_own_alone(secured: Settings, pool: Pool):
    for agent in ("*", GREETER, "mailer"):
        await pool.execute("INSERT INTO agent_configurations VALUES ($1, 'k', 'v')", agent)
    for agent in (GREETER, "mailer"):
        await pool.execute("INSERT INTO sessions (agent_name, session_id) VALUES ($1, 's')", agent)
    async with as_role(secured, GREETER) as connection:
        seen = "SELECT array_agg(agent_name ORDER BY agent_name) FROM "
        assert await connection.fetchval(f"{seen} agent_configurations") == ["*", GREETER]
        assert await connection.fetchval(f"{seen} sessions") == [GREETER]
        assert await connection.execute("DELETE FROM sessions WHERE agent_name = 'mailer'") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute("INSERT INTO sessions (agent_name, session_id) VALUES ('mailer', 'x')")
    for user in ("scheduler", "operator"):
        async with as_role(secured, user) as connection:
            assert await connection.fetchval("SELECT count(*) FROM sessions") == 2


async def test_only_the_owner_migrates_and_makes_roles(secured: Settings):
    for user in EVERYBODY:
        with pytest.raises(SetupError, match="the owner of the tables"):
            await migrate(place_of(secured, user))
        with pytest.raises(SetupError, match="does not own the tables"):
            await apply_roles(place_of(secured, user), [], {})


async def test_rights_that_were_given_by_hand_are_taken_away_again(secured: Settings, pool: Pool):
    await pool.execute("GRANT DELETE ON runs TO perdure_agents")
    made = await apply_roles(secured, [GREETER], {})
    assert made[-1] == "perdure_agent_greeter"
    async with as_role(secured, GREETER) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM runs")


async def test_a_password_becomes_what_postgres_makes_of_it_and_is_not_sent(secured: Settings, pool: Pool):
    await apply_roles(secured, [GREETER], {GREETER: "a word, only ours"})
    kept = await pool.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'perdure_agent_greeter'")
    await pool.execute("ALTER ROLE perdure_agent_greeter PASSWORD 'a word, only ours'")
    its = await pool.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'perdure_agent_greeter'")
    salt = base64.b64decode(its.split("$")[1].partition(":")[2])
    assert verifier("a word, only ours", salt) == its
    assert kept.startswith("SCRAM-SHA-256$4096:")


async def test_every_table_is_somebodys(pool: Pool):
    """A table that is new is given, in `deploy/postgres/roles.sql`, to whoever needs it: here it is noticed."""
    text = (ROOT / "deploy" / "postgres" / "roles.sql").read_text()
    tables = await pool.fetch(
        "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') "
        "AND NOT c.relispartition AND c.relname NOT IN ('schema_migrations')"
    )
    assert {row["relname"] for row in tables if not re.search(rf"\b{row['relname']}\b", text)} == set()


def test_an_agent_whose_name_makes_no_role_is_told():
    with pytest.raises(ValueError, match="too long a name"):
        role_of("a" * 60)


async def test_the_scheduler_makes_and_drops_shelves_of_the_journal_and_no_other_tables(secured, pool):
    await pool.execute(
        "UPDATE journal_shelves SET begins_at = begins_at - interval '9 years', ends_at = ends_at - interval '9 years'"
    )
    gone, *_ = [record["shelf"] for record in await pool.fetch("SELECT shelf FROM journal_shelves ORDER BY shelf")]
    retention = load_queries("retention.sql")
    async with as_role(secured, GREETER) as agent:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await agent.fetchval(retention["drop_shelf"], gone)
    async with as_role(secured, "scheduler") as scheduler:
        assert {tuple(record) for record in await scheduler.fetch(retention["make_shelves"])} == {(True,)}
        assert await scheduler.fetchval(retention["drop_shelf"], gone)
    assert await pool.fetchval("SELECT to_regclass('journal_' || $1::integer)", gone) is None
