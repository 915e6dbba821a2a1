"""What the environment says: the well-known variables keep their meaning, Perdure's own begin with `PERDURE_`."""

from __future__ import annotations

import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from perdure.errors import SetupError

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
DEFAULT_DATABASE_URL = "postgresql://perdure@127.0.0.1:5432/perdure"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


_MAY_BE_EMPTY = (
    *("audit_key", "nats_user", "nats_password", "nats_credentials", "nats_nkey", "tls_ca", "tls_cert", "tls_key"),
    *("gateway_tls_cert", "gateway_tls_key", "gateway_tls_client_ca"),
)


def _shared(name: str) -> AliasChoices:
    """A variable that other programs use too, so it has no prefix."""
    return AliasChoices(name, name.lower())


def _new_instance_id() -> str:
    """Who this process is; one token of a NATS subject, so a host's dots become `-`."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{uuid4().hex[:6]}"


class Settings(BaseSettings):
    """The settings of one process, read once at its start. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_", extra="ignore", populate_by_name=True)

    # -- where the platform is --
    nats_url: str = Field(DEFAULT_NATS_URL, validation_alias=_shared("NATS_URL"))
    database_url: str = Field(DEFAULT_DATABASE_URL, validation_alias=_shared("DATABASE_URL"))
    redis_url: str = Field(DEFAULT_REDIS_URL, validation_alias=_shared("REDIS_URL"))
    consul_http_addr: str | None = Field(None, validation_alias=_shared("CONSUL_HTTP_ADDR"))
    consul_http_token: str | None = Field(None, validation_alias=_shared("CONSUL_HTTP_TOKEN"), repr=False)
    otel_exporter_otlp_endpoint: str | None = Field(None, validation_alias=_shared("OTEL_EXPORTER_OTLP_ENDPOINT"))
    home: Path = Path(".perdure")
    agents: str = Field("assistant,activation", description="ready agents that `perdure up` starts; empty for none")

    namespace: str = Field(
        "", pattern=r"^([a-z0-9][a-z0-9-]{0,29})?$", description="environment, such as staging; empty: none"
    )

    # -- who this process is to the servers, and TLS --
    nats_user: str | None = Field(None, description="when it is not in NATS_URL")
    nats_password: str | None = Field(None, repr=False)
    nats_credentials: Path | None = Field(None, description="a .creds file: a JWT and its seed")
    nats_nkey: Path | None = Field(None, description="a file with the seed of an NKey")
    nats_inbox_prefix: str = Field(
        "", pattern=r"^(_(INBOX|REPLY)(\.[A-Za-z0-9_-]+)+)?$", description="empty: _REPLY.<user> when there is a user"
    )
    tls_ca: str | None = Field(None, description="PEM of the authority to trust, or `system`; TLS is on with it")
    tls_cert: Path | None = Field(None, description="PEM of this process's certificate, for servers that ask for one")
    tls_key: Path | None = None
    tls_for: str = Field("nats,postgres,redis", description="the servers that are spoken to by TLS")

    # -- this process --
    instance_id: str = Field(default_factory=_new_instance_id, pattern=r"^[A-Za-z0-9_-]{1,128}$")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    drain_timeout: float = Field(20.0, gt=0)
    metrics_port: int | None = Field(None, ge=0, le=65_535, description="where metrics are told; 0: any free port")
    metrics_host: str = "127.0.0.1"

    # -- Postgres --
    pool_size: int = Field(8, ge=2, le=200)
    statement_timeout: float = Field(30.0, gt=0)

    # -- the engine --
    lease_seconds: float = Field(5.0, gt=0.2)
    run_slots: int = Field(512, ge=1, description="runs that one process holds in memory at a time")
    run_max_attempts: int = Field(10, ge=1)
    sweep_interval: float = Field(1.0, gt=0, description="how often the scheduler looks for work that nobody woke")
    redispatch_after: float = Field(3.0, gt=0, description="age of a pending run's last wake-up before the next")
    callback_secret: str | None = Field(
        None, pattern=r"^secret://(env|file)/.+", description="signs callbacks that name no secret of their own"
    )
    callback_private: bool = Field(
        False, description="callbacks may use plain HTTP and go to addresses of this machine and its networks"
    )
    callback_timeout: float = Field(10.0, gt=0, le=30)
    retention_days: int | None = Field(
        None,
        ge=0,
        le=36_500,
        description="days that runs are kept after their end; 0: for ever; unset: as the database says",
    )
    callback_max_attempts: int = Field(20, ge=1, le=1000, description="tries of a callback before it is given up")
    max_payload: int = Field(67_108_864, ge=1024, description="largest task, result, output or signal")
    inline_payload: int = Field(262_144, ge=1024, description="larger values are stored by reference")
    payload_store: Literal["postgres", "nats"] = Field(
        "postgres", description="where they stand: in Postgres, or in an object store of JetStream"
    )
    agent_prompts: bool = Field(True, description="agents answer the agent protocol (agents.prompt.…)")
    always_replay: bool = Field(False, description="for tests: a run is replayed from its journal at every await")

    # -- encryption at rest --
    encryption_keys: str = Field("", repr=False, description="id:base64,…: the first key seals, all of them open")
    encryption_kms: str = Field("", description="module:function that gives a key service, which wraps data keys")
    encryption_kms_timeout: float = Field(5.0, gt=0, le=60, description="of one call of the key service")
    codec: str = Field("", description="module:function that makes another codec than the one of the keys")

    # -- the console --
    console_host: str = "127.0.0.1"
    console_port: int = Field(8080, ge=0, le=65_535)
    gateway_url: str = Field("http://127.0.0.1:8000", pattern=r"^https?://", description="the gateway that is asked")

    # -- the audit log --
    audit_key: str | None = Field(None, repr=False, description="under which acts are sealed; else plain hashes")
    audit_verify_interval: float = Field(3600.0, ge=0, description="how often the services verify the log; 0: never")
    audit_days: float = Field(365.0, ge=0, description="age at which acts are removed, a day at least; 0: never")

    # -- the gateway --
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(8000, ge=0, le=65_535)
    gateway_max_requests: int = Field(1000, ge=1, description="requests under way, past which one is answered 429")
    gateway_max_streams: int = Field(4000, ge=1, description="event streams that are read at a time")
    gateway_max_bytes: int = Field(268_435_456, ge=65_536, description="of bodies of requests in memory at a time")
    gateway_secret: str | None = Field(None, repr=False, description="under which keys are hashed; else a file in home")
    gateway_rate_limit: int | None = Field(None, ge=1, description="requests a minute of a key that has no limit")
    gateway_origins: str = Field("", description="sites whose pages may call, between commas; empty for none")
    gateway_public_url: str | None = Field(None, description="where clients reach it, when that is another address")
    gateway_jwt_issuer: str | None = None
    gateway_jwt_audience: str | None = None
    gateway_jwks_url: str | None = None
    gateway_jwt_algorithms: str = "RS256,ES256"
    gateway_tls_cert: Path | None = Field(None, description="PEM of its certificate: HTTPS is on with it")
    gateway_tls_key: Path | None = None
    gateway_tls_client_ca: Path | None = Field(None, description="clients must show a certificate of this authority")
    gateway_heartbeat: float = Field(10.0, gt=0, description="silence of a stream after which a comment goes out")

    # -- configuration --
    config_poll_interval: float = Field(30.0, gt=0, description="how often configuration is compared anyway")
    config_history_days: float = Field(365.0, ge=0, description="age at which history is pruned; 0: never")
    config_history_revisions: int = Field(1_000_000, ge=0, description="revisions of history kept; 0: all")
    config_store: Literal["postgres", "redis"] = "postgres"
    config_redis_prefix: str = Field("config:", max_length=200, pattern=r"^[^\s\x00-\x1f\x7f]*$")
    config_redis_agent: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$",
        validate_default=True,
        description="the single agent whose keys in Redis do not name it",
    )

    @field_validator("config_redis_prefix")
    @classmethod
    def _not_our_own(cls, prefix: str) -> str:
        if prefix.startswith("perdure:"):
            raise ValueError("keys of the platform itself begin with perdure:")
        return prefix

    @field_validator("config_redis_agent")
    @classmethod
    def _somebody_is_meant(cls, agent: str, info: ValidationInfo) -> str:
        if info.data.get("config_store") == "redis" and info.data.get("config_redis_prefix") == "" and not agent:
            raise ValueError("name the agent that keys without a prefix belong to, or set PERDURE_CONFIG_REDIS_PREFIX")
        return agent

    @field_validator("tls_for")
    @classmethod
    def _servers_that_are(cls, named: str) -> str:
        if wrong := {each.strip() for each in named.split(",")} - {"nats", "postgres", "redis", ""}:
            raise ValueError(f"{', '.join(sorted(wrong))} is none of nats, postgres, redis")
        return named

    @property
    def tls_for_servers(self) -> frozenset[str]:
        """The servers that are spoken to by TLS when there is a `tls_ca`."""
        return frozenset(each.strip() for each in self.tls_for.split(","))

    @model_validator(mode="after")
    def _one_way_to_be_known(self) -> Settings:
        ways = {
            "PERDURE_NATS_USER": self.nats_user,
            "PERDURE_NATS_CREDENTIALS": self.nats_credentials,
            "PERDURE_NATS_NKEY": self.nats_nkey,
        }
        if len(given := [name for name, value in ways.items() if value]) > 1:
            raise ValueError(f"{' and '.join(given)} are set; NATS takes one of them")
        if self.nats_password and not self.nats_user:
            raise ValueError("PERDURE_NATS_PASSWORD is set without PERDURE_NATS_USER")
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, said: dict[str, Any]) -> dict[str, Any]:
        """An empty address says that there is none, as `NATS_URL=${NATS_URL:-}` in a compose file does."""
        addresses = (
            *("nats_url", "database_url", "redis_url", "consul_http_addr", "consul_http_token"),
            *(
                "perdure_gateway_url",
                "perdure_gateway_secret",
                "perdure_gateway_jwt_issuer",
                "perdure_gateway_jwks_url",
            ),
            *("perdure_metrics_port", "metrics_port", "otel_exporter_otlp_endpoint"),
            *("gateway_secret", "gateway_jwt_issuer", "gateway_jwks_url"),
            *(f"{start}{name}" for start in ("", "perdure_") for name in _MAY_BE_EMPTY),
        )
        return {name: value for name, value in said.items() if value or name.lower() not in addresses}


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process; the environment is read on the first call.

    Raises `SetupError` that names each variable whose value cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = (
            f"{_variable(str(each['loc'][0]))}: {each['msg']}, not {each['input']!r}" if each["loc"] else each["msg"]
            for each in error.errors()
        )
        raise SetupError(f"the environment is not usable. {'; '.join(wrong)}") from error


def _variable(name: str) -> str:
    """The environment's name of a field."""
    return f"PERDURE_{name.upper()}" if name in Settings.model_fields else name
