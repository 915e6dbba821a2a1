"""Who calls, and what that caller may do and see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from perdure.errors import Forbidden, InvalidRequest
from perdure.subjects import MARK, PLATFORM, RUN_ID, TENANT, tenant_of

Role: TypeAlias = Literal["viewer", "operator", "admin"]
ROLES: Final[tuple[Role, ...]] = ("viewer", "operator", "admin")
__all__ = ["MARK", "PLATFORM", "ROLES", "TENANT", "Caller", "Role", "tenant_of"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: `role` (each one may what those before it may), `tenant`, and the agents it may use (None: all).

    `tenant` is None for one who sees all tenants: only where no keys are configured. `until` is when a token ends, in
    Unix seconds; `rate_limit` is in requests a minute.
    """

    name: str
    role: Role
    tenant: str | None = PLATFORM
    agents: frozenset[str] | None = None
    key_id: str | None = None
    until: float | None = None
    rate_limit: int | None = None

    def need(self, role: Role) -> None:
        """Raises `Forbidden` unless the caller has at least this role."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise Forbidden(f"this needs the role {role}, and {self.name} is {self.role}")

    def need_agent(self, agent: str) -> None:
        """Raises `Forbidden` unless the caller may use this agent."""
        if not self.uses(agent):
            raise Forbidden(f"{self.name} may not use agent {agent}")

    def need_platform(self) -> None:
        """Raises `Forbidden` for tenants: what is asked for belongs to the platform as a whole."""
        if self.tenant not in (None, PLATFORM):
            raise Forbidden(f"this belongs to the platform, and {self.name} is of tenant {self.tenant}")

    def uses(self, agent: str) -> bool:
        """Whether the caller may use this agent."""
        return self.agents is None or agent in self.agents

    def sees_id(self, named: str) -> bool:
        """Whether a run or a conversation of this id is of the caller's tenant."""
        return self.tenant in (None, tenant_of(named))

    def sees(self, agent: str, named: str) -> bool:
        """Whether the caller may know of a run or a conversation of this agent, by its id."""
        return self.uses(agent) and self.sees_id(named)

    def own(self, named: str, *, field: str = "run_id") -> str:
        """An id as the caller gives it, as it is known here: a tenant's ids begin with its name.

        Raises `InvalidRequest` for one that is too long then, or that would be another tenant's.
        """
        whole = self.own_key(named, field=field)
        if not RUN_ID.fullmatch(whole):
            raise InvalidRequest(f"{field} {named!r} is not usable: with the name of its tenant it is over 128 long")
        return whole

    def own_key(self, named: str, *, field: str) -> str:
        """The same for what need not be an id."""
        if self.tenant is None or tenant_of(named) == self.tenant:
            return named
        if self.tenant == PLATFORM:
            raise InvalidRequest(f"{field} {named!r} is not usable: ids like NAME{MARK}… are those of tenants")
        return f"{self.tenant}{MARK}{named}"

    def known(self, named: str) -> str:
        """An id that is looked for, as it is known here; one that can only be another tenant's stays as it is."""
        return named if self.tenant in (None, PLATFORM) else self.own(named)
