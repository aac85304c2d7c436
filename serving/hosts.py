"""Names and addresses of hosts: which of them are this machine."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HOST_AND_PORT = re.compile(r"[0-9A-Za-z._\[\]:-]{1,255}:[0-9]{1,5}")


def is_host_and_port(address: str) -> bool:
    """Whether this is of the form `HOST:PORT`."""
    return _HOST_AND_PORT.fullmatch(address) is not None


def in_address(host: str) -> str:
    """As `host`, a name or an address, is written in front of `:PORT`."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host`, a name or an address, does not leave this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_localhost(name: str) -> bool:
    """Whether browsers take a name for this machine's whatever a resolver says (RFC 6761)."""
    return name == "localhost" or name.endswith(".localhost")


def is_address(host: str) -> bool:
    """Whether this is an address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_of_target(target: str) -> str:
    """The host that a gRPC client is to call, out of `HOST:PORT` or `dns:///HOST:PORT`; empty if that is unclear.

    A socket in the file system is this machine's.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return "localhost"
    if is_address(target):
        return target
    for scheme in ("dns:", "ipv4:", "ipv6:", "passthrough:"):
        if target.startswith(scheme):
            target = target.removeprefix(scheme).rpartition("/")[2]
    try:
        parts = urlsplit(f"//{target}")
        _ = parts.port  # Raises ValueError for one that is none.
        return parts.hostname or ""
    except ValueError:
        return ""
