from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web as aio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from perdure.edge import tokens as tokens_module
from perdure.edge.tokens import Tokens
from perdure.errors import Forbidden, SetupError, Unauthorized
from perdure.settings import Settings
from tests.edge_support import web

A_DAY = 86_400  # the forged tokens are made when the tests are collected: no run of the suite outlasts it
ISSUER, AUDIENCE = "https://id.example", "perdure"
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def public(kid: str, key: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


class Issuer:
    """Publishes its keys."""

    def __init__(self) -> None:
        self.keys = [public("rsa", RSA_KEY), public("ec", EC_KEY), {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}]
        self.reads = 0
        self.url = ""

    async def answer(self, _request: aio.Request) -> aio.Response:
        self.reads += 1
        return aio.json_response({"keys": self.keys})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    app = aio.Application()
    app.router.add_get("/keys", made.answer)
    runner = aio.AppRunner(app)
    await runner.setup()
    site = aio.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield made
    await runner.cleanup()


@pytest.fixture
def tokens(issuer: Issuer) -> Tokens:
    return Tokens(ISSUER, AUDIENCE, issuer.url, ["RS256", "ES256"])


def claims(**said: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + A_DAY, "perdure_role": "operator"}
    return {name: value for name, value in {**usual, **said}.items() if value is not None}


def signed(key: Any = RSA_KEY, algorithm: str = "RS256", kid: Any = "rsa", **said: Any) -> str:
    headers = said.pop("headers", {})
    return jwt.encode(claims(**said), key, algorithm, {**({} if kid is None else {"kid": kid}), **headers})


async def test_a_good_token_says_who_calls_and_what_he_may(tokens: Tokens):
    caller = await tokens.caller(signed(perdure_tenant="acme", perdure_agents=["clerk"]))
    assert (caller.name, caller.role, caller.tenant, caller.agents) == ("ann", "operator", "acme", {"clerk"})
    assert (await tokens.caller(signed(EC_KEY, "ES256", "ec"))).tenant == "default"


def forged() -> dict[str, str]:
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    good = signed()
    head, body, signature = good.split(".")
    past, now = int(time.time()) - 3600, int(time.time())
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    mixed_head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"rsa","typ":"JWT"}').decode()
    mixed = hmac.sign(f"{mixed_head}.{body}".encode(), pem)
    attacker = {"jwk": public("rsa", OTHER_KEY), "jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/x"}
    return {
        "no algorithm": jwt.encode(claims(), None, "none", {"kid": "rsa"}),
        "no signature": f"{head}.{body}.",
        "another signature": f"{head}.{body}.{signature[::-1]}",
        "the public key as a shared secret": f"{mixed_head}.{body}.{jwt.utils.base64url_encode(mixed).decode()}",
        "a shared key": jwt.encode(claims(), b"secret" * 8, "HS256", {"kid": "shared"}),
        "a key of another": signed(OTHER_KEY),
        "a key in its header": signed(OTHER_KEY, headers=attacker),
        "an algorithm that is not pinned": signed(algorithm="RS512"),
        "an algorithm of another kind of key": signed(EC_KEY, "ES256", "rsa"),
        "no key id": signed(kid=None),
        "a key id that is a path": signed(kid="../../../dev/null"),
        "a key id that is SQL": signed(kid="' UNION SELECT 'x"),
        "expired": signed(exp=past),
        "without an end": signed(exp=None),
        "not yet": signed(nbf=now + A_DAY),
        "for another audience": signed(aud="other"),
        "for none": signed(aud=None),
        "of another issuer": signed(iss="https://evil.example"),
        "of nobody": signed(sub=None),
        "too long": signed(padding="x" * 20_000),
        "no token": "a.b.c",
    }


FORGED = forged()


@pytest.mark.parametrize("attack", FORGED)
async def test_a_forged_token_is_refused(tokens: Tokens, attack: str):
    with pytest.raises(Unauthorized) as refused:
        await tokens.caller(FORGED[attack])
    assert FORGED[attack] not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        {"perdure_role": None},
        {"perdure_role": "root"},
        {"perdure_tenant": "a__b"},
        {"perdure_tenant": 7},
        {"perdure_agents": "clerk"},
        {"perdure_agents": ["a.b"]},
    ],
)
async def test_a_token_without_a_usable_role_tenant_or_list_of_agents_is_refused(tokens: Tokens, said):
    with pytest.raises(Forbidden):
        await tokens.caller(signed(**said))


async def test_new_keys_of_the_issuer_are_found_and_unknown_ones_do_not_ask_it_each_time(
    tokens: Tokens, issuer: Issuer, monkeypatch
):
    await tokens.caller(signed())
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await tokens.caller(signed(OTHER_KEY, kid="new"))
    assert issuer.reads == 1
    issuer.keys = [public("new", OTHER_KEY)]
    monkeypatch.setattr(tokens_module, "SOONEST", 0.0)
    assert (await tokens.caller(signed(OTHER_KEY, kid="new"))).name == "ann"
    with pytest.raises(Unauthorized):
        await tokens.caller(signed())  # the old key is withdrawn
    assert issuer.reads == 3


@pytest.mark.parametrize("names", ["HS256", "none", "RS256,HS256", ""])
async def test_only_signatures_by_public_keys_can_be_configured(names: str):
    said = Settings(
        gateway_jwt_issuer=ISSUER,
        gateway_jwt_audience=AUDIENCE,
        gateway_jwks_url="https://id.example/keys",
        gateway_jwt_algorithms=names,
    )
    with pytest.raises(SetupError, match="PERDURE_GATEWAY_JWT_ALGORITHMS"):
        Tokens.configured(said)


async def test_half_a_configuration_is_said_so():
    with pytest.raises(SetupError, match="belong together"):
        Tokens.configured(Settings(gateway_jwt_issuer=ISSUER))


async def test_where_an_issuer_is_configured_nobody_is_let_in_without_a_token(settings, nc, issuer: Issuer):
    said = {"gateway_jwt_issuer": ISSUER, "gateway_jwt_audience": AUDIENCE, "gateway_jwks_url": issuer.url}
    async with web(settings, **said) as door:
        assert (await door.http.get("/agents")).status_code == 401
        assert (await door.http.get("/agents", headers={"Authorization": f"Bearer {signed()}"})).status_code == 200
        for attack, token in FORGED.items():
            response = await door.http.get("/agents", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == 401, attack
