"""Where a webhook may go: whoever names its URL must not reach what only this machine or its network can."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

LONGEST: Final = 2048
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL6: Final = ipaddress.ip_network("2000::/3")  # all that is given out as global unicast: older forms, in which
# an address of IPv4 can stand, translation for one's own network and site-local addresses are outside of it
_SPECIAL: Final = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
"""What Python's own table, by its age, calls global, and is not."""


class Refused(OSError):
    """The address may not be reached."""


def check_url(url: str, *, private: bool = False) -> str:
    """`url` itself. Raises `ValueError` naming what is wrong with it; the addresses of its host are checked later.

    With `private`, plain HTTP and addresses of this machine and its networks are allowed.
    """
    if len(url) > LONGEST or not url.isprintable() or " " in url:
        raise ValueError(f"a URL has at most {LONGEST} printable characters and no spaces")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("it is not a URL") from None
    if parts.scheme not in (("https", "http") if private else ("https",)) or not parts.hostname:
        raise ValueError("it must be an https:// URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must not contain a user or a password")
    if not private and not allowed(parts.hostname, unknown=True):
        raise ValueError(f"{parts.hostname} is not a public address")
    return url


def allowed(address: str, *, unknown: bool = False) -> bool:
    """Whether `address` is one of the public internet; `unknown` is the answer for a text that is no address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return unknown
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL6:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in each for each in _SPECIAL)


async def look_up(host: str, port: int, family: int) -> list[Any]:
    """What `getaddrinfo` says."""
    return await asyncio.get_running_loop().getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )


class GuardedResolver(AbstractResolver):
    """Resolves a host and refuses it if any of its addresses may not be reached.

    The connection is made to the addresses that were checked, so a name cannot mean another one a moment later.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`. Raises `Refused`, and `OSError` when there are none."""
        found = await look_up(host, port, family)
        results: list[ResolveResult] = []
        for kind, _, proto, _, place in found:
            address = str(place[0])
            if not self._private and not allowed(address):
                raise Refused(f"{host} is {address}, which is not a public address")
            results.append(
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=int(place[1]),
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is kept open."""
