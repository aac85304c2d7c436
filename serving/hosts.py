"""Names and addresses of hosts: which of them are this machine."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host`, a name or an address, does not leave this machine."""
    return is_localhost(host) or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_localhost(name: str) -> bool:
    """Whether a name can only be this machine's: no other one is `localhost` (RFC 6761)."""
    return name == "localhost" or name.endswith(".localhost")


def is_address(host: str) -> bool:
    """Whether this is an address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
