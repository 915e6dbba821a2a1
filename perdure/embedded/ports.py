"""TCP ports on loopback."""

from __future__ import annotations

import random
import socket

from perdure.errors import SetupError

HOST = "127.0.0.1"
# Below the range from which the kernel takes the ports of outgoing connections, so that a server that is restarted
# finds its port free again.
_FIRST, _LAST = 15_000, 31_999
_random = random.SystemRandom()


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that was free a moment ago. Raises `SetupError` when a thousand tries find none."""
    for _ in range(1000):
        port = _random.randint(_FIRST, _LAST)
        if is_free(port):
            return port
    raise SetupError(f"no free port between {_FIRST} and {_LAST} on {HOST}; stop some of the servers on this machine")
