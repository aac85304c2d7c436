"""What is known of a server on this machine once it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Running:
    """Its replicas' logs, its metrics, and its Ray cluster's `host:port`."""

    logs: Path
    metrics: str
    cluster: str

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Self:
        """Out of a message of the process that holds the cluster."""
        return cls(Path(message["logs"]), message["metrics"], message["cluster"])

    @property
    def message(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self) | {"logs": str(self.logs)}
