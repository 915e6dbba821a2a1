"""Perdure for any program: start runs, wait for them, watch and steer them. See `Client`."""

from __future__ import annotations

from perdure.client.client import Client
from perdure.client.handle import RunHandle
from perdure.client.presence import Replica
from perdure.client.types import BulkCount, BulkPage, RunEvent, RunPage, SessionPage

__all__ = ["BulkCount", "BulkPage", "Client", "Replica", "RunEvent", "RunHandle", "RunPage", "SessionPage"]
