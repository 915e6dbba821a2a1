"""The processor that masks secrets, attacked: wherever a secret hides, what is written does not have it."""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import dataclass

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.observe import masking
from perdure.observe.logging import quiet_by_default, setup_logging
from perdure.observe.masking import LONGEST, hide, mask_secrets, mask_text
from perdure.settings import Settings

SECRET = "hunter2-and-more"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(masking, "_values", type(masking._values)())
    monkeypatch.setattr(masking, "_pattern", None)


@pytest.fixture
def written(monkeypatch):
    """Logs set up as in a process; the text that it wrote."""
    root = logging.getLogger()
    before, level, config = root.handlers, root.level, structlog.get_config()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging(Settings(instance_id="i-1", log_format="json"), service="tester")
    yield stream.getvalue
    root.handlers = before
    root.setLevel(level)
    structlog.configure(**config)


def masked(**event):
    return orjson.dumps(mask_secrets(None, "info", event), default=str).decode()


@dataclass
class Account:
    user: str
    password: str


class Rude:
    def __str__(self):
        raise RuntimeError(SECRET)


def deep(levels):
    value = {"password": SECRET}
    for _ in range(levels):
        value = {"more": [value]}
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"db": {"Password": SECRET}},
        {"apiKey": SECRET, "accessToken": SECRET, "clientSecret": SECRET},
        {"X-Api-Key": SECRET, "Cookie": SECRET, "Set-Cookie": SECRET, "x_auth_token": SECRET},
        {"secret": {"value": SECRET}, "credentials": [SECRET], "private_key": SECRET.encode()},
        [("authorization", SECRET)],
        [[b"authorization", SECRET.encode()], [b"x-api-key", SECRET.encode()]],
        ({"token": SECRET},),
        *(deep(levels) for levels in range(12)),
        Account("ann", SECRET),
        [Account("ann", SECRET)],
        {"account": Account("ann", SECRET)},
        Rude(),
        ValueError(f"password={SECRET}"),
        f"postgresql://ann:{SECRET}@db/x",
        f"redis://:{SECRET}@db/0",
        f"nats://{SECRET}@n:4222",
        f"amqp://ann:{SECRET}:x@y@db",
        f"https://db/?user=ann&token={SECRET}&x=1",
        f"https://db/?api_key={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"authorization: basic {SECRET}",
        f'{{"password": "{SECRET} with words"}}',
        f'{{"body": "{{\\"client_secret\\": \\"{SECRET}\\"}}"}}',
        f"connect failed: password: {SECRET}, user: ann",
        f"PERDURE_GATEWAY_SECRET={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"Settings(user='ann', password='{SECRET}')",
        f"nats://ann:{SECRET}@n".encode(),
        bytearray(f"token={SECRET}".encode()),
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
        f"eyJhbGciOiJIUzI1.eyJzdWIiOiI5.{SECRET}",
        "x" * (LONGEST - 30) + f" postgresql://ann:{SECRET}@db",
        "x " * (LONGEST // 2 - 20) + f"redis://u:{SECRET}@h/0",
        f"redis://u:{SECRET}@h/0 " + "y" * 3 * LONGEST,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_secret_is_not_in_what_is_written(value):
    assert SECRET not in masked(event="x", value=value)
    assert SECRET not in masked(event="x", value={"inside": [value]})


@pytest.mark.parametrize("cut", range(LONGEST - 60, LONGEST + 10, 7))
def test_a_secret_that_the_cut_divides_is_not_shown_in_part(cut):
    shown = mask_text("z" * (cut - 1) + f" postgresql://ann:{SECRET}@db")
    assert SECRET[:6] not in shown


def test_what_is_no_secret_stays():
    said = {
        "max_tokens": 5,
        "tokens": 7,
        "tokenizer": "bpe",
        "llm_api_key": "secret://env/KEY",
        "password": None,
        "text": "the token is counted; unexpected token: } at 3, password: None, basic ideas",
        "url": "http://example.org:80/a?x=1",
        "mail": "me@example.org at http://example.org",
        "reference": 'llm_api_key="secret://env/KEY"',
        "key": "key: value",
        "monkey": "monkey=banana",
    }
    assert mask_secrets(None, "info", dict(said)) == said


def test_a_value_that_a_reference_stands_for_is_masked_wherever_it_turns_up():
    hide(SECRET)
    assert SECRET not in masked(
        event=f"the model said {SECRET}!", **{SECRET: 1}, list=[f"a{SECRET}b"], b=SECRET.encode()
    )
    assert SECRET not in masked(event="x", nested={SECRET: {SECRET: SECRET}})


async def test_resolving_a_reference_is_enough_for_that(monkeypatch, tmp_path):
    from perdure.config.secrets import resolve_secret

    monkeypatch.setenv("MY_KEY", SECRET)
    (tmp_path / "key").write_text("from-a-file\n")
    await resolve_secret("secret://env/MY_KEY")
    await resolve_secret(f"secret://file{tmp_path}/key")
    assert mask_text(f"{SECRET} from-a-file") == "*** ***"


def test_what_json_cannot_say_is_written_all_the_same():
    assert "340282366920938463463374607431768211456" in masked(event="x", value=2**128)
    assert "that cannot be shown" in masked(event="x", value=10**5000)
    assert masked(event="x", value={"name\udcff": "text\udcff"}).count("?") == 2


def test_short_values_are_no_reason_to_mask_words_and_many_values_are_bounded():
    hide("abc")
    hide(None)
    assert mask_text("abc") == "abc"
    for number in range(masking.MOST_VALUES + 100):
        hide(f"value-{number}")
    assert len(masking._values) == masking.MOST_VALUES


def test_the_passwords_of_the_process_own_addresses_are_masked_on_their_own(written, capsys):
    setup_logging(
        Settings(
            nats_url="nats://a:nats-password@n,nats://b:other-password@m",
            database_url="postgresql://u:pg%2Dpassword@db/x",
            consul_http_token="consul-token",
            encryption_keys="k1:c2VjcmV0LWtleQ==",
            audit_key="audit-secret-of-32-characters-or-more",
            gateway_secret="gateway-secret",
            nats_user="u",
            nats_password="password-of-its-own",
            log_format="json",
        ),
        service="tester",
    )
    own = ("audit-secret-of-32-characters-or-more", "gateway-secret", "password-of-its-own")
    logging.getLogger("lib").warning("login with %s failed", "nats-password other-password pg-password consul-token")
    structlog.get_logger("a").warning("c2VjcmV0LWtleQ==", action="a")
    for word in own:
        structlog.get_logger("a").warning(f"it is {word}", action="a", of_no_known_name=word)
    text = capsys.readouterr().err  # where `sys.stderr` was when this test set logs up
    assert text.count("login with") == 1
    assert text.count("it is ") == len(own)
    for word in (*own, "nats-password", "other-password", "pg-password", "consul-token", "c2VjcmV0LWtleQ"):
        assert word not in text


def test_exceptions_are_masked_with_their_causes_notes_and_groups(written):
    try:
        try:
            raise ConnectionError(f"postgresql://u:{SECRET}@db refused")
        except ConnectionError as cause:
            error = ExceptionGroup("many", [ValueError(f"api_key={SECRET}"), KeyError({"password": SECRET})])
            error.add_note(f"Authorization: Bearer {SECRET}")
            raise error from cause
    except ExceptionGroup:
        structlog.get_logger("b").exception("broke", action="a")
        logging.getLogger("lib").exception("broke with token=%s", SECRET)
    lines = [orjson.loads(line) for line in written().splitlines()]
    assert len(lines) == 2
    assert all("ConnectionError: postgresql://u:***@db refused" in line["exception"] for line in lines)
    assert SECRET not in written()


def test_programs_that_use_perdure_inside_do_not_see_secrets_either(monkeypatch, capsys):
    config = structlog.get_config()
    structlog.reset_defaults()
    try:
        quiet_by_default()
        try:
            raise ConnectionError(f"postgresql://u:{SECRET}@db refused")
        except ConnectionError:
            structlog.get_logger().exception("broke", action="a")
    finally:
        structlog.configure(**config)
    said = capsys.readouterr()
    assert "broke" in said.err
    assert SECRET not in said.err


def test_long_texts_are_cut_and_take_no_time_that_grows_with_their_square():
    for text in ("a." * 2_000_000, "://" * 500_000, "password=" * 200_000, "\\" * 1_000_000, "Bearer " * 300_000):
        assert len(mask_text(text)) < 2 * LONGEST


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_whatever_is_logged_becomes_a_line(value):
    assert isinstance(masked(event="x", value=value), str)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(alphabet=st.characters(categories=["L", "N"]), min_size=8, max_size=40),
    st.sampled_from(["{}", "token={}", "postgresql://u:{}@h/x", "Bearer {}", '{{"password": "{}"}}', "a {} b"]),
)
def test_a_known_secret_is_masked_in_every_form(secret, form):
    hide(secret)
    assert secret not in mask_text(form.format(secret)).replace(masking.MASK, "\0")
