"""Who a process is to NATS: by user, by NKey; and what is said about settings that do not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest
from typer.testing import CliRunner

from perdure.bus.connection import connect, identity
from perdure.cli.main import build
from perdure.errors import SetupError
from perdure.settings import Settings, load_settings
from tests.secured import SecuredNats
from tests.support import temporary_folder


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    """The environment is read once in a process, and each test here has another one."""
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


async def test_a_process_is_known_by_its_nkey(settings: Settings):
    with temporary_folder("nkey") as home:
        pair = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
        (home / "seed").write_bytes(bytes(pair.seed))
        config = home / "server.conf"
        config.write_text(f'authorization {{ users = [ {{ nkey: "{pair.public_key.decode()}" }} ] }}')
        server = SecuredNats(home, config, {})
        await server.start()
        try:
            said = settings.model_copy(update={"nats_url": server.url, "nats_nkey": home / "seed"})
            client = await connect(said, "test")
            await client.flush()
            await client.close()
        finally:
            await server.kill()


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("nothing", "holds no seed"), ("SUAMYÉ", "cannot be read")]
)
def test_a_file_that_says_not_who_we_are_is_named(tmp_path: Path, text: str | None, said: str):
    file = tmp_path / "who"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    for field, variable in (("nats_credentials", "PERDURE_NATS_CREDENTIALS"), ("nats_nkey", "PERDURE_NATS_NKEY")):
        with pytest.raises(SetupError, match=rf"{variable}={file}.*{said}"):
            identity(Settings(**{field: file}))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NATS_USER": "a", "NATS_PASSWORD": "geheim", "NATS_NKEY": "c"}, "NATS_USER and PERDURE_NATS_NKEY are set"),
        ({"NATS_PASSWORD": "geheim"}, "PERDURE_NATS_PASSWORD is set without PERDURE_NATS_USER"),
        ({"NATS_INBOX_PREFIX": "inboxes"}, "PERDURE_NATS_INBOX_PREFIX"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_without_the_password(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
):
    for name, value in variables.items():
        monkeypatch.setenv(f"PERDURE_{name}", value)
    with pytest.raises(SetupError, match=said) as refused:
        load_settings()
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "changed", "prefix"),
    [
        ("nats://h:4222", {}, "_INBOX"),
        ("nats://mailer:word@h:4222", {}, "_REPLY.mailer"),
        ("nats://h:4222", {"nats_user": "mailer", "nats_password": "word"}, "_REPLY.mailer"),
        ("nats://a.b:word@h:4222", {}, "_INBOX"),
        ("nats://mailer:word@h:4222", {"nats_inbox_prefix": "_INBOX.mine"}, "_INBOX.mine"),
    ],
)
def test_replies_come_to_inboxes_of_the_user(url: str, changed: dict[str, str], prefix: str):
    assert identity(Settings(nats_url=url, **changed))["inbox_prefix"] == prefix


def test_the_command_prints_a_user_and_says_what_it_cannot_print():
    def told(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(build("deploy"), ["deploy", "nats-permissions", *arguments])
        return done.exit_code, done.output

    code, text = told("Mailer", "--no-prompts", "--publish", "mail.sent", "--consume", "ORDERS:orders.new:pack")
    assert code == 0
    for line in (
        'user: "mailer", password: $NATS_PASSWORD_MAILER',
        '"mail.sent"',
        '"$JS.API.CONSUMER.CREATE.ORDERS.mailer-pack-',
    ):
        assert line in text
    assert "agents.prompt" not in text
    for wrong, said in (
        ([], "--all"),
        (["scheduler"], "name of a service"),
        (["Bad/Name"], "Bad/Name"),
        (["x", "--publish", "a..b"], "a..b"),
        (["x", "--consume", "a:b"], "STREAM:SUBJECT:WORKFLOW"),
        (["x", "--reply-time", "soon"], "--reply-time"),
    ):
        code, text = told(*wrong)
        assert (code, said in text) == (2, True), text
