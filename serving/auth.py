"""Who may call: tokens, of which only digests are kept, and the caller that a token stands for."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engines.config.validation import require
from engines.errors import ConfigError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "LONGTAKE_TOKEN"
"""Where commands that call a server find the token, unless they are given one."""

REREAD_S = 5.0
"""How often a file of tokens is looked at."""

_CALLER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclass(frozen=True)
class Tokens:
    """Who may come in: SHA-256 digests of tokens by caller. None at all lets everybody in, as one caller.

    A caller's name is up to 64 letters, digits, dots, dashes and underscores: a folder of recordings has it.
    `path` is the file that they were read from.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for caller in self.digests:
            problem = f"{caller[:80]!r} is no name of a caller: at most 64 letters, digits and ._- make one"
            require(_CALLER.fullmatch(caller) is not None, problem)

    @classmethod
    def of_file(cls, path: Path) -> Tokens:
        """Lines of `caller token`. Raises ConfigError for a line that is not."""
        digests: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            parts = line.split()
            place = f"{path}, line {number}"
            require(len(parts) == 2, f"{place}: a line is a caller's name and a token")
            caller, digest = parts[0], hashlib.sha256(parts[1].encode()).hexdigest()
            require(caller not in digests, f"{place}: {caller} is there already; a caller has one token")
            require(digest not in digests.values(), f"{place}: the token of {caller} is somebody else's already")
            digests[caller] = digest
        require(bool(digests), f"{path} has no token, which would let everybody in; leave the file out for that")
        # Not resolved: a mounted Secret changes by a symbolic link that leads elsewhere.
        return cls(digests, path.absolute())

    def caller(self, token: str | None) -> str | None:
        """Who has the token; None for nobody."""
        if not self.digests:
            return ""
        digest = hashlib.sha256((token or "").encode()).hexdigest()
        found = [caller for caller, known in self.digests.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


class TokensFile:
    """Tokens as their file has them now: what is changed there counts within `REREAD_S` seconds.

    A file that cannot be read, or has no token any more, changes nothing: who could come in still can.
    """

    def __init__(self, tokens: Tokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens, self._clock = tokens, clock
        self._read_at = clock()

    @property
    def tokens(self) -> Tokens:
        """The tokens that count."""
        path, now = self._tokens.path, self._clock()
        if path is not None and now - self._read_at >= REREAD_S:
            self._read_at = now
            self._reread(path)
        return self._tokens

    def _reread(self, path: Path) -> None:
        try:
            found = Tokens.of_file(path)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            logger.error("tokens kept as they were", extra={"path": str(path), "why": str(error)})
            return
        if found != self._tokens:
            logger.info("tokens read again", extra={"path": str(path), "callers": len(found.digests)})
            self._tokens = found


class OperatorToken:
    """The one token of all operators, in a file of its own: what is changed there counts from the next request on.

    Servers between which sessions go show it to each other. Without a file nobody is an operator.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> str | None:
        """The token; None without a file. Raises ConfigError for one that cannot be read, or is no token."""
        if self._path is None:
            return None
        try:
            token = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the operators' token {str(self._path)!r} cannot be read: {error}") from None
        require(len(token.split()) == 1, f"{self._path} is to have one token, and nothing else")
        return token

    def is_of(self, token: str) -> bool:
        """Whether this is it."""
        try:
            own = self.read()
        except ConfigError as error:
            logger.error("nobody is an operator", extra={"why": str(error)})
            return False
        return own is not None and hmac.compare_digest(own.encode(), token.encode())


class Caller(NamedTuple):
    """Who asks."""

    name: str
    """From the token; empty where no tokens are configured, and for operators."""
    is_operator: bool = False
