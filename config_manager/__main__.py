"""`python -m config_manager`: the ConfigManager alone. NATS_URL, DATABASE_URL and REDIS_URL name its servers."""

from __future__ import annotations

from config_manager.service import ConfigManager
from perdure.bus.service import serve

if __name__ == "__main__":
    serve(ConfigManager())
