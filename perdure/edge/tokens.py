"""JSON Web Tokens of an identity provider: pinned algorithms, its published keys alone, every claim checked."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import aiohttp
import jwt
import orjson
import structlog
from jwt.exceptions import InvalidTokenError, PyJWKError

from perdure.edge.callers import PLATFORM, ROLES, TENANT, Caller
from perdure.errors import Forbidden, SetupError, Unauthorized, Unavailable
from perdure.settings import Settings
from perdure.subjects import AGENT_NAME

LEEWAY: Final = 30.0  # seconds by which clocks may differ
FRESH: Final = 300.0  # seconds after which the keys are read again
SOONEST: Final = 10.0  # seconds between two reads that unknown key ids cause
STALE: Final = 3600.0  # seconds for which keys are used that cannot be read again
LARGEST: Final = 1_000_000
LONGEST: Final = 16_384  # characters of a token
FAMILIES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Which kind of key an algorithm signs with. None is symmetric: a public key is never taken for a shared secret."""

log = structlog.get_logger(__name__)


class Tokens:
    """Recognises tokens of one issuer for one audience.

    The claims `perdure_role` (needed), `perdure_tenant` and `perdure_agents` (a list) say what the bearer may.
    """

    def __init__(self, issuer: str, audience: str, jwks_url: str, algorithms: list[str]) -> None:
        wrong = [name for name in algorithms if name[:2] not in FAMILIES]
        if wrong or not algorithms:
            raise SetupError(
                f"PERDURE_GATEWAY_JWT_ALGORITHMS: {', '.join(wrong) or 'nothing'} cannot be used; "
                "only signatures by public keys are taken: RS256, PS256, ES256, EdDSA and their longer forms"
            )
        if not jwks_url.startswith(("https://", "http://")):
            raise SetupError(f"PERDURE_GATEWAY_JWKS_URL: {jwks_url!r} is no http(s) address")
        self._issuer = issuer
        self._audience = audience
        self._url = jwks_url
        self._algorithms = algorithms
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = 0.0
        self._tried_at = -SOONEST
        self._lock = asyncio.Lock()

    @classmethod
    def configured(cls, settings: Settings) -> Tokens | None:
        """By the settings; None when no issuer is named. Raises `SetupError` naming what is missing."""
        said = (settings.gateway_jwt_issuer, settings.gateway_jwt_audience, settings.gateway_jwks_url)
        issuer, audience, url = said
        if not any(said):
            return None
        if not issuer or not audience or not url:
            raise SetupError(
                "PERDURE_GATEWAY_JWT_ISSUER, PERDURE_GATEWAY_JWT_AUDIENCE and PERDURE_GATEWAY_JWKS_URL belong "
                "together: set all three, or none"
            )
        algorithms = [name.strip() for name in settings.gateway_jwt_algorithms.split(",") if name.strip()]
        return cls(issuer, audience, url, algorithms)

    async def caller(self, token: str) -> Caller:
        """Who bears this token. Raises `Unauthorized`, `Forbidden` without a role, `Unavailable`."""
        if len(token) > LONGEST:
            raise Unauthorized("this token is too long")
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in self._algorithms or not isinstance(key_id, str):
                raise Unauthorized("this token is not signed as it must be")
            key = await self._key(key_id)
            if key is None or key.key_type != FAMILIES[algorithm[:2]]:
                raise Unauthorized("this token is not signed by a key of its issuer")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except InvalidTokenError as error:
            raise Unauthorized(f"this token does not count: {type(error).__name__.removesuffix('Error')}") from None
        return _caller(claims)

    async def _key(self, key_id: str) -> jwt.PyJWK | None:
        """The issuer's key of this id; the keys are read again when they are old, or when it is not among them."""
        now = time.monotonic()
        if (key_id not in self._keys and now - self._tried_at >= SOONEST) or now - self._read_at > FRESH:
            async with self._lock:
                if now >= self._tried_at + (SOONEST if key_id not in self._keys else 0.0):
                    await self._read()
        if time.monotonic() - self._read_at > STALE:
            raise Unavailable("the keys of the issuer of tokens cannot be read; ask again")
        return self._keys.get(key_id)

    async def _read(self) -> None:
        self._tried_at = time.monotonic()
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self._url, allow_redirects=False) as response,
            ):
                body = await response.content.read(LARGEST + 1)
                if response.status != 200 or len(body) > LARGEST:
                    raise ValueError(f"status {response.status}, {len(body)} bytes")
            self._keys = _usable(orjson.loads(body)["keys"])
            self._read_at = time.monotonic()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
            if not self._keys:
                self._read_at = -STALE
            log.warning("the issuer's keys cannot be read", action="tokens.no_keys", url=self._url, error=str(error))


def _usable(keys: list[dict[str, Any]]) -> dict[str, jwt.PyJWK]:
    """The public keys for signatures, by their ids."""
    found: dict[str, jwt.PyJWK] = {}
    for each in keys:
        if each.get("kty") not in FAMILIES.values() or each.get("use", "sig") != "sig" or "kid" not in each:
            continue
        public = {name: value for name, value in each.items() if name not in ("d", "p", "q", "dp", "dq", "qi")}
        try:
            found[str(each["kid"])] = jwt.PyJWK(public)
        except (PyJWKError, InvalidTokenError, ValueError) as error:
            log.warning("a key of the issuer cannot be used", action="tokens.bad_key", error=str(error))
    return found


def _caller(claims: dict[str, Any]) -> Caller:
    role, tenant, agents = (claims.get(f"perdure_{name}") for name in ("role", "tenant", "agents"))
    if role not in ROLES:
        raise Forbidden("this token gives no role: its claim perdure_role must be viewer, operator or admin")
    if tenant is not None and not (isinstance(tenant, str) and TENANT.fullmatch(tenant)):
        raise Forbidden("this token's claim perdure_tenant is no tenant's name")
    if agents is not None and not (
        isinstance(agents, list) and all(isinstance(each, str) and AGENT_NAME.fullmatch(each) for each in agents)
    ):
        raise Forbidden("this token's claim perdure_agents is no list of agents' names")
    name = str(claims["sub"])[:100]
    until = float(claims["exp"]) + LEEWAY
    return Caller(name, role, tenant or PLATFORM, None if agents is None else frozenset(agents), until=until)
