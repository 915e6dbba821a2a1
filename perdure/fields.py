"""What fields of requests may hold: names, ids, times, states."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from perdure.subjects import AGENT_NAME, RUN_ID, TENANT

Id = Annotated[str, Field(pattern=f"^{RUN_ID.pattern}$")]
AgentName = Annotated[str, Field(pattern=f"^{AGENT_NAME.pattern}$")]
Tenant = Annotated[str, Field(pattern=f"^{TENANT.pattern}$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=316_224_000, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(strict=True, gt=0, le=316_224_000, allow_inf_nan=False)]
Revision = Annotated[int, Field(ge=0, lt=2**63)]
Configurations = dict[Annotated[str, Field(min_length=1, max_length=256)], Any]
RunStatus = Literal[
    "pending",
    "running",
    "waiting",
    "paused",
    "blocked",
    "needs_review",
    "completed",
    "failed",
    "cancelled",
    "dead",
]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Statuses = Annotated[list[RunStatus], BeforeValidator(_listed), Field(min_length=1)]
"""One state or several: none at all would be every run to whoever takes it for no filter."""


def _storable(moment: datetime) -> datetime:
    """Postgres holds years 1 to 9999 in UTC; a zone may lead out of them."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("moment", "must be within the years 1 to 9999 in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_storable)]
