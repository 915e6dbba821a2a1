from __future__ import annotations

import base64
import os

import pytest

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store import sealing
from perdure.store.sealing import EnvelopeCodec, codec_of, read_keys
from perdure.store.vault import Spot, Unreadable, Vault

HERE = Spot("result", "run", "1/2").context


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_what_is_sealed_opens_in_its_place_alone():
    codec = EnvelopeCodec(read_keys(f"k1:{key()}"))
    sealed = codec.seal(b"canary", HERE)
    assert codec.open(sealed, HERE) == b"canary"
    assert "canary" not in str(sealed)
    for elsewhere in (Spot("result", "other", "1/2"), Spot("error", "run", "1/2"), Spot("result", "run", "1/3")):
        with pytest.raises(Unreadable, match="moved here"):
            codec.open(sealed, elsewhere.context)


@pytest.mark.parametrize("field", ["wrapped", "nonce", "text"])
def test_an_altered_envelope_is_refused(field):
    codec = EnvelopeCodec(read_keys(f"k1:{key()}"))
    sealed = codec.seal(b"canary", HERE)
    changed = bytearray(base64.b64decode(sealed[field]))
    changed[-1] ^= 1
    with pytest.raises(Unreadable, match="altered"):
        codec.open({**sealed, field: base64.b64encode(changed).decode()}, HERE)
    with pytest.raises(Unreadable, match="broken"):
        codec.open({name: value for name, value in sealed.items() if name != field}, HERE)
    with pytest.raises(Unreadable, match=r"broken|altered"):
        codec.open({**sealed, field: "?"}, HERE)


def test_the_first_key_seals_and_all_open():
    one, two = f"k1:{key()}", f"k2:{key()}"
    old = EnvelopeCodec(read_keys(one)).seal(b"canary", HERE)
    both = EnvelopeCodec(read_keys(f"{two}, {one}"))
    assert both.open(old, HERE) == b"canary"
    assert both.seal(b"", HERE)["key"] == "k2"
    with pytest.raises(Unreadable, match=r"key 'k1', and this process has only k2: add the key"):
        EnvelopeCodec(read_keys(two)).open(old, HERE)


def test_a_data_key_has_a_bound(monkeypatch):
    monkeypatch.setattr(sealing, "SEALS", 2)
    codec = EnvelopeCodec(read_keys(f"k1:{key()}"))
    sealed = [codec.seal(b"canary", HERE) for _ in range(5)]
    assert len({each["wrapped"] for each in sealed}) == 3
    assert {codec.open(each, HERE) for each in sealed} == {b"canary"}


def test_each_tenant_has_data_keys_of_its_own(monkeypatch):
    monkeypatch.setattr(sealing, "REMEMBERED", 2)
    codec = EnvelopeCodec(read_keys(f"k1:{key()}"))
    places = {name: Spot("result", f"{name}r", "1/2").context for name in ("acme__", "globex__", "")}
    sealed = {name: codec.seal(b"canary", place) for name, place in places.items()}
    assert [each.get("tenant") for each in sealed.values()] == ["acme", "globex", None]
    assert len({each["wrapped"] for each in sealed.values()}) == 3
    assert codec.seal(b"", Spot("error", "globex__x").context)["wrapped"] == sealed["globex__"]["wrapped"]
    for name, place in places.items():
        assert codec.open(sealed[name], place) == b"canary"
    with pytest.raises(Unreadable, match="altered"):
        codec.open({**sealed["acme__"], "tenant": "globex"}, places["acme__"])
    with pytest.raises(Unreadable, match="altered"):
        codec.open({**sealed["acme__"], "wrapped": sealed["globex__"]["wrapped"]}, places["acme__"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secret", "pair 1 does not begin with an id"),
        ("k1:secret!", "key 'k1' is not base64"),
        ("k1:c2VjcmV0", "key 'k1' has 6 bytes"),
        (f"k1:{'A' * 43}=,k1:{'A' * 43}=", "there twice"),
        (f"k1:{'A' * 43}=,", "pair 2"),
    ],
)
def test_keys_that_are_none_are_named_and_never_quoted(text, said):
    with pytest.raises(SetupError, match=said) as caught:
        read_keys(text)
    assert "secret" not in str(caught.value)
    assert "AAAA" not in str(caught.value)
    assert "openssl rand -base64 32" in str(caught.value)


def test_keys_are_in_no_repr():
    assert "topsecret" not in repr(Settings(encryption_keys="k1:topsecret"))


class Backwards:
    def seal(self, data, context):
        return {"key": "none", "text": data[::-1].decode()}

    def open(self, sealed, context):
        return sealed["text"].encode()[::-1]


def backwards(settings: Settings) -> Backwards:
    return Backwards()


def test_a_codec_of_ones_own_is_named_by_its_function():
    vault = Vault(codec_of(Settings(codec=f"{__name__}:backwards")))
    stored = vault.seal('"canary"', Spot("task", "r"))
    assert "canary" not in stored
    assert vault.unseal(stored, Spot("task", "r")) == '"canary"'


@pytest.mark.parametrize("codec", ["nowhere:it", f"{__name__}:nothing", f"{__name__}:key", "os:getcwd", "nothing"])
def test_a_codec_that_cannot_be_used_is_said(codec):
    with pytest.raises(SetupError, match="PERDURE_CODEC="):
        codec_of(Settings(codec=codec))
