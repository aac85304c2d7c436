"""Which pages may call the server: browsers send to it what any page asks for, and name that page's origin.

A page from elsewhere could steer a server that only this machine reaches: the browser is on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from engines.config.validation import require
from serving.errors import InvalidRequest, OriginNotAllowed
from serving.hosts import is_address, is_localhost

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origins:
    """The origins of pages that may call beside the server's own, such as `https://example.org`.

    With `local_names_only` the server itself answers to `localhost` and to addresses alone: another name may be
    that of a page from elsewhere, whose owner has pointed it here. Raises ConfigError for what is no origin.
    """

    allowed: tuple[str, ...] = ()
    local_names_only: bool = False

    def __post_init__(self) -> None:
        for origin in self.allowed:
            require(_place(origin) is not None, f"{origin!r} is no origin; one is like https://example.org:8443")

    def require(self, origin: str | None, host: str) -> None:
        """Raise OriginNotAllowed for a page that may not call `host`; `origin` is None for other programs."""
        if origin is not None and not self._is_allowed(origin) and not _is_same(origin, host):
            raise OriginNotAllowed(
                f"a page from {origin[:200]!r} may not call {host[:200]!r}; --allowed-origins lets it"
            )

    def require_host(self, host: str) -> None:
        """Raise OriginNotAllowed for a name that is not this server's, and InvalidRequest for what is none."""
        name = _name(host)
        names = {urlsplit(origin).hostname for origin in self.allowed}
        if self.local_names_only and not (is_localhost(name) or is_address(name) or name in names):
            raise OriginNotAllowed(
                f"{host[:200]!r} is no name of this server; --allowed-origins https://NAME makes it one"
            )

    def _is_allowed(self, origin: str) -> bool:
        return _place(origin) in map(_place, self.allowed)


SAME_ORIGIN = Origins()
"""The server's own page alone."""


def _name(host: str) -> str:
    """Of a Host header; empty where it is."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # Raises ValueError for one that is none.
        return parts.hostname or ""
    except ValueError:
        raise InvalidRequest(
            f"the Host header is {host[:200]!r}; it must be NAME or NAME:PORT, as localhost:8000 or [::1]:8000 is"
        ) from None


def _is_same(origin: str, host: str) -> bool:
    """Whether a page came from the server at `host`, whose scheme is that of the gateway in front."""
    place = _place(origin)
    return place is not None and place == _place(f"{place[0]}://{host}")


def _place(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no origin, as `null` and `*` are."""
    try:
        parts = urlsplit(origin)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or not _is_bare(parts):
        return None
    return parts.scheme, parts.hostname, port


def _is_bare(parts: SplitResult) -> bool:
    has_more = parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc
    return not has_more and "*" not in parts.netloc
