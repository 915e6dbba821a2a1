"""Puts the services, the ready agents and the migrations into the wheel as data, under `perdure/_platform`.

They travel as data so that nobody's site-packages gets a top-level package called `services` or `agents`. A hook and
not `force-include`, because that would also copy them into an editable install, where they would go stale.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIED = ("config_manager", "services", "agents", "migrations", "deploy/postgres")


class CarryPlatform(BuildHookInterface[Any]):
    """Called by hatchling for each wheel it builds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a real wheel, nothing to an editable one."""
        if version == "standard":
            build_data["force_include"].update({name: f"perdure/_platform/{name}" for name in CARRIED})
