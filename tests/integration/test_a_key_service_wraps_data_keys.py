"""Data keys are wrapped by keys of the environment or by a key service: both keep the same promises, and a service that
is away or refuses loses nothing."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import aiohttp
import pytest

from perdure.doctor import postgres
from perdure.doctor.findings import Notes
from perdure.errors import SetupError, Unavailable
from perdure.settings import Settings
from perdure.store import kms, sealing
from perdure.store.kms import KeyServiceAway, KeyServiceRefuses, KmsCodec
from perdure.store.sealing import EnvelopeCodec, codec_of, read_keys, tenant_in
from perdure.store.vault import Spot, Unreadable, Vault
from perdure.testing.kms import VARIABLE, FakeKms, HttpKeyService
from tests.engine_support import until
from tests.integration.test_what_is_stored_can_be_sealed import CANARY, EXPECTED, Miner
from tests.platform import in_process
from tests.support import eventually

HERE = Spot("result", "run", "1/2")
HOOK = "perdure.testing.kms:hook"


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


class Keys(Protocol):
    """Where key-encryption keys come from."""

    async def codec(self) -> EnvelopeCodec:
        """That of a process that begins now."""

    async def rotate(self) -> None:
        """A new key seals from now on; the old ones open."""

    async def take_away(self, key_id: str) -> None:
        """This key opens no more."""


class OfEnvironment:
    def __init__(self) -> None:
        self.names = [f"k1:{key()}"]

    async def codec(self) -> EnvelopeCodec:
        return EnvelopeCodec(read_keys(",".join(self.names)))

    async def rotate(self) -> None:
        self.names.insert(0, f"k{len(self.names) + 1}:{key()}")

    async def take_away(self, key_id: str) -> None:
        self.names = [each for each in self.names if not each.startswith(f"{key_id}:")]


class OfService:
    def __init__(self, fake: FakeKms) -> None:
        self.fake = fake

    async def codec(self) -> EnvelopeCodec:
        return KmsCodec(HttpKeyService(self.fake.url), {}, 5.0)

    async def rotate(self) -> None:
        async with aiohttp.ClientSession() as http, http.post(f"{self.fake.url}/rotate"):
            pass

    async def take_away(self, key_id: str) -> None:
        self.fake.disabled.add(key_id)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKms]:
    async with FakeKms() as serving:
        yield serving


@pytest.fixture(params=["environment", "service"])
def keys(request: pytest.FixtureRequest, fake: FakeKms) -> Keys:
    return OfEnvironment() if request.param == "environment" else OfService(fake)


async def sealed_by(codec: EnvelopeCodec, text: str, spot: Spot) -> str:
    vault = Vault(codec)
    await vault.ready([spot])
    return vault.seal(text, spot)


async def opened_by(codec: EnvelopeCodec, text: str, spot: Spot) -> str:
    vault = Vault(codec)
    await vault.ready(texts=[text])
    return vault.unseal(text, spot)


# -- what both promise ------------------------------------------------------------------------------------------------


async def test_another_process_opens_what_was_sealed_in_its_place_alone(keys: Keys):
    text = await sealed_by(await keys.codec(), '"canary"', HERE)
    assert "canary" not in text
    other = await keys.codec()
    assert await opened_by(other, text, HERE) == '"canary"'
    for elsewhere in (Spot("result", "other", "1/2"), Spot("error", "run", "1/2"), Spot("result", "run", "1/3")):
        with pytest.raises(Unreadable, match="moved here"):
            await opened_by(other, text, elsewhere)


async def test_a_data_key_is_its_tenants_alone(keys: Keys):
    spots = {name: Spot("result", f"{name}r", "1/2") for name in ("acme__", "globex__", "")}
    codec = await keys.codec()
    texts = {name: await sealed_by(codec, '"canary"', spot) for name, spot in spots.items()}
    other = await keys.codec()
    for name, spot in spots.items():
        assert await opened_by(other, texts[name], spot) == '"canary"'
    moved = texts["acme__"].replace('"tenant":"acme"', '"tenant":"globex"')
    assert moved != texts["acme__"]
    with pytest.raises(Unreadable):
        await opened_by(await keys.codec(), moved, spots["acme__"])


async def test_a_new_key_seals_and_the_old_ones_open_until_they_are_taken_away(keys: Keys):
    before = await keys.codec()
    old = await sealed_by(before, '"old"', HERE)
    await keys.rotate()
    codec = await keys.codec()
    new = await sealed_by(codec, '"new"', HERE)
    assert await opened_by(codec, old, HERE) == '"old"'
    names = [dict(before._mine)[""].name, dict(codec._mine)[""].name]
    assert len(set(names)) == 2
    assert f'"key":"{names[0]}"' in old
    assert f'"key":"{names[1]}"' in new
    await keys.take_away(names[0])
    last = await keys.codec()
    assert await opened_by(last, new, HERE) == '"new"'
    with pytest.raises(Unreadable, match=names[0]):
        await opened_by(last, old, HERE)


async def test_a_data_key_is_renewed(keys: Keys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sealing, "SEALS", 2)
    codec = await keys.codec()
    texts: list[str] = []

    async def three() -> bool:
        texts.append(await sealed_by(codec, str(len(texts)), HERE))
        return len({each.partition('"wrapped":"')[2].partition('"')[0] for each in texts}) == 3

    await eventually(three)
    assert [await opened_by(codec, each, HERE) for each in texts] == [str(number) for number in range(len(texts))]


async def test_nobody_waits_for_a_new_data_key_while_there_is_one():
    Picky.gate = asyncio.Event()
    Picky.gate.set()
    codec, place = KmsCodec(Picky(), {}, 60.0), Spot("task", "slow__r")
    await sealed_by(codec, "1", place)
    Picky.gate.clear()  # from now on the service hangs
    codec._mine["slow"].left = 0
    first = dict(codec._mine)["slow"]
    assert [await opened_by(codec, await sealed_by(codec, str(n), place), place) for n in range(3)] == ["0", "1", "2"]
    assert codec._mine["slow"] is first
    Picky.gate.set()
    await eventually(lambda: codec._mine["slow"] is not first)


# -- what a service makes of it ---------------------------------------------------------------------------------------


async def test_a_data_key_is_unwrapped_once_however_many_values_and_readers_there_are(fake: FakeKms):
    writer, reader = [KmsCodec(HttpKeyService(fake.url), {}, 5.0) for _ in range(2)]
    texts = await asyncio.gather(*(sealed_by(writer, str(number), HERE) for number in range(50)))
    assert await asyncio.gather(*(opened_by(reader, each, HERE) for each in texts)) == [str(n) for n in range(50)]
    assert fake.calls == {"wrap": 1, "unwrap": 1}
    assert await opened_by(writer, texts[0], HERE) == "0"  # its own: the service need not be asked
    assert fake.calls["unwrap"] == 1


async def test_a_service_that_is_away_is_said_and_what_is_known_goes_on(fake: FakeKms, monkeypatch: pytest.MonkeyPatch):
    codec = KmsCodec(HttpKeyService(fake.url), {}, 5.0)
    text = await sealed_by(codec, "1", HERE)
    await fake.stop()
    monkeypatch.setattr(sealing, "SEALS", 1)
    codec._mine[""].left = 0  # due for a new one, which nobody wraps
    assert await opened_by(codec, await sealed_by(codec, "2", HERE), HERE) == "2"
    codec._mine[""].left, codec._mine[""].again = -kms.LONGER, 0.0
    with pytest.raises(KeyServiceAway, match="did not wrap a data key"):
        await sealed_by(codec, "3", HERE)
    with pytest.raises(KeyServiceAway, match="did not wrap a data key"):
        await sealed_by(codec, "3", Spot("result", "acme__r"))
    with pytest.raises(KeyServiceAway, match="did not unwrap a data key"):
        await opened_by(KmsCodec(HttpKeyService(fake.url), {}, 5.0), text, HERE)


async def test_a_service_that_hangs_is_not_waited_for_beyond_its_time():
    class Hanging:
        async def wrap(self, key: bytes, tenant: str) -> tuple[str, bytes]:
            await asyncio.Event().wait()
            raise AssertionError

        async def unwrap(self, key_id: str, wrapped: bytes, tenant: str) -> bytes:
            raise OSError("no route to the service")

    codec = KmsCodec(Hanging(), {}, 0.01)
    with pytest.raises(KeyServiceAway, match=r"within 0\.01 s"):
        await sealed_by(codec, "1", HERE)
    with pytest.raises(KeyServiceAway, match="no route"):
        await codec.prepare([], [{"key": "a", "wrapped": "AAAA"}])


async def test_a_refusal_is_believed_for_a_moment_and_then_asked_again(fake: FakeKms, monkeypatch: pytest.MonkeyPatch):
    text = await sealed_by(KmsCodec(HttpKeyService(fake.url), {}, 5.0), "1", HERE)
    reader = KmsCodec(HttpKeyService(fake.url), {}, 5.0)
    fake.disabled.add("kms-1")
    for _ in range(3):
        with pytest.raises(Unreadable, match="kms-1 is disabled"):
            await opened_by(reader, text, HERE)
    assert fake.calls["unwrap"] == 1
    fake.disabled.clear()
    monkeypatch.setattr(kms, "REFUSED_FOR", 0.0)
    reader._refused.clear()
    assert await opened_by(reader, text, HERE) == "1"


async def test_a_key_that_may_not_wrap_is_told_from_a_service_that_is_away(
    fake: FakeKms, settings: Any, nc: Any, pool: Any, monkeypatch: pytest.MonkeyPatch
):
    fake.disabled.add("kms-1")
    monkeypatch.setenv(VARIABLE, fake.url)
    used = settings.model_copy(update={"encryption_kms": HOOK})
    why = "refuses to wrap a data key of the platform: kms-1 is disabled"
    async with in_process(used, nc, Miner) as platform:
        for _ in range(3):
            with pytest.raises(Unavailable, match=why):
                await platform.start_run("miner", {"text": "x"}, run_id="r")
        assert fake.calls["wrap"] == 1, "a refusal is believed for a moment"
        with pytest.raises(Unavailable, match="of tenant 'acme': kms-1 is disabled"):
            await platform.start_run("miner", {"text": "x"}, run_id="acme__r")
        notes = Notes("postgres")
        async with pool.acquire() as connection:
            await postgres._sealed(connection, used, notes)
        [found] = notes.findings
        assert (found.status, found.check) == ("error", "encryption")
        assert why in found.said
        monkeypatch.setattr(kms, "REFUSED_FOR", 0.0)
        fake.disabled.clear()
    async with in_process(used, nc, Miner) as platform:  # it believes no refusal of another process
        await platform.start_run("miner", {"text": "x"}, run_id="r")


async def test_a_refusal_to_wrap_keeps_the_data_key_that_there_is_and_ends_when_it_is_mended(
    fake: FakeKms, monkeypatch: pytest.MonkeyPatch
):
    codec = KmsCodec(HttpKeyService(fake.url), {}, 5.0)
    monkeypatch.setattr(sealing, "SEALS", 1)
    await sealed_by(codec, "1", HERE)
    fake.disabled.add("kms-1")
    codec._mine[""].left = 0  # due for a new one
    await sealed_by(codec, "2", HERE)
    codec._mine[""].left, codec._mine[""].again = -kms.LONGER, 0.0
    for _ in range(2):
        with pytest.raises(KeyServiceRefuses, match="kms-1 is disabled"):
            await sealed_by(codec, "3", HERE)
    fake.disabled.clear()
    with pytest.raises(KeyServiceRefuses):
        await sealed_by(codec, "3", HERE)
    codec._refused["", "", ""] = ("", 0.0)  # the moment has passed
    assert await sealed_by(codec, "4", HERE)
    assert not codec._refused


async def test_what_keys_of_the_environment_sealed_opens_beside_a_service(fake: FakeKms):
    known = read_keys(f"k1:{key()}")
    old = await sealed_by(EnvelopeCodec(known), "1", HERE)
    codec = KmsCodec(HttpKeyService(fake.url), known, 5.0)
    assert await opened_by(codec, old, HERE) == "1"
    assert '"key":"kms-1"' in await sealed_by(codec, "2", HERE)
    assert fake.calls["unwrap"] == 0


@pytest.mark.parametrize(
    ("place", "tenant"),
    [
        (Spot("task", "acme__r"), "acme"),
        (Spot("message", "desk/acme__s"), "acme"),
        (Spot("memory", "desk/session:acme__s"), "acme"),
        (Spot("memory", "desk/user:anna"), ""),
        (Spot("dead_letter", "desk"), ""),
        (Spot("task", "r"), ""),
    ],
)
def test_the_tenant_of_a_place_is_that_of_its_run_or_conversation(place: Spot, tenant: str):
    assert tenant_in(place.context) == tenant


def no_service(settings: Settings) -> object:
    return object()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("nowhere:it", "No module named"),
        (HOOK, f"{VARIABLE} is not set"),
        (f"{__name__}:no_service", "gave a object without async wrap and unwrap"),
        ("os:getcwd", "TypeError"),
    ],
)
def test_a_hook_that_cannot_be_used_is_said(said: str, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    with pytest.raises(SetupError, match=f"PERDURE_ENCRYPTION_KMS={said}.*{why}"):
        codec_of(Settings(encryption_kms=said))


# -- a platform -------------------------------------------------------------------------------------------------------


@contextmanager
def service(port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The fake as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.testing.kms", str(port)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


async def test_a_run_outlives_its_key_service(settings: Any, nc: Any, pool: Any, monkeypatch: pytest.MonkeyPatch):
    with service() as (process, url):
        monkeypatch.setenv(VARIABLE, url)
        used = settings.model_copy(update={"encryption_kms": HOOK, "encryption_kms_timeout": 0.2})
        async with in_process(used, nc, Miner) as platform:
            await platform.start_run("miner", {"text": CANARY}, run_id="r")
            waits = "SELECT status = 'waiting' AND waiting_signals IS NOT NULL FROM runs WHERE run_id = 'r'"
            await eventually(lambda: pool.fetchval(waits))  # for the signal, and not for the next try of its step
        assert CANARY not in await pool.fetchval("SELECT task::text FROM runs WHERE run_id = 'r'")
        process.send_signal(signal.SIGSTOP)
        async with in_process(used, nc, Miner) as platform:  # knows no data key, and cannot ask
            refused = await asyncio.gather(platform.start_run("miner", {"text": "x"}), return_exceptions=True)
            assert getattr(refused[0], "code", "") == "unavailable"
            notes = Notes("postgres")
            async with pool.acquire() as connection:
                await postgres._sealed(connection, used, notes)
            [found] = notes.findings
            assert (found.status, found.check) == ("error", "encryption")
            assert "did not unwrap a data key within 0.2 s" in found.said
            # It is woken, and claimed again and again; that is no attempt, and nothing stops it.
            await pool.execute("UPDATE runs SET status = 'pending', dispatched_at = 'epoch' WHERE run_id = 'r'")
            await eventually(lambda: pool.fetchval("SELECT epoch > 3 FROM runs WHERE run_id = 'r'"), timeout=20)
            assert await pool.fetchval("SELECT attempts FROM runs WHERE run_id = 'r'") <= 1
            process.send_signal(signal.SIGCONT)
            await eventually(lambda: platform.request("run.signal", SAID), timeout=20)
            assert (await until(platform, "r", "completed", "blocked"))["output"] == EXPECTED


class Picky:
    """Hangs for one tenant until the gate is open."""

    gate: ClassVar[asyncio.Event]

    async def wrap(self, key: bytes, tenant: str) -> tuple[str, bytes]:
        if tenant == "slow":
            await self.gate.wait()
        return "p", key[::-1]

    async def unwrap(self, key_id: str, wrapped: bytes, tenant: str) -> bytes:
        return wrapped[::-1]


def picky(settings: Settings) -> Picky:
    return Picky()


async def test_a_tenant_without_a_key_holds_up_nobody_else(settings: Any, nc: Any, monkeypatch: pytest.MonkeyPatch):
    Picky.gate = asyncio.Event()
    monkeypatch.setitem(sys.modules, "picky_service", sys.modules[__name__])
    used = settings.model_copy(update={"encryption_kms": "picky_service:picky", "encryption_kms_timeout": 60.0})
    async with in_process(used, nc) as platform:
        slow = asyncio.create_task(platform.start_run("miner", {}, run_id="slow__r"))
        for number in range(5):
            await platform.start_run("miner", {}, run_id=f"quick__{number}")
        assert not slow.done()
        Picky.gate.set()
        assert await slow == "slow__r"


SAID = {"run_id": "r", "name": "up", "payload": f"{CANARY} may come up"}
