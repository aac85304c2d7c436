"""The chart, and what helm makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "longtake"
NAME = "longtake"
INSECURE = ("insecure=true",)
"""Values of a server that asks for no token."""


def serve_config(ray_service: Mapping[str, Any]) -> dict[str, Any]:
    """Serve's config of a RayService."""
    config: dict[str, Any] = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    return config


class Refused(Exception):
    """Helm did not render, and said why."""


@dataclass(frozen=True)
class Rendered:
    """The objects that a release consists of, and the notes."""

    objects: Sequence[Mapping[str, Any]]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Those of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    @property
    def ray_service(self) -> Mapping[str, Any]:
        """The one RayService."""
        (found,) = self.of("RayService")
        return found

    @property
    def groups(self) -> dict[str, Mapping[str, Any]]:
        """Worker groups by name, and the head."""
        cluster = self.ray_service["spec"]["rayClusterConfig"]
        return {group["groupName"]: group for group in cluster["workerGroupSpecs"]} | {
            "head": cluster["headGroupSpec"]
        }

    def pod(self, group: str) -> Mapping[str, Any]:
        """The spec of the pods of a group."""
        spec: Mapping[str, Any] = self.groups[group]["template"]["spec"]
        return spec


@dataclass(frozen=True)
class Chart:
    """The chart, and helm to render it with."""

    helm: Path

    def render(self, *values: str, files: Sequence[Path] = (), release: str = NAME) -> Rendered:
        """With values as of `--set`, and files of them. Raises Refused."""
        words = [word for file in files for word in ("--values", str(file))]
        words += [word for value in values for word in ("--set", value)]
        command = [str(self.helm), "template", release, str(CHART), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise Refused(done.stderr)
        return Rendered([found for found in yaml.safe_load_all(done.stdout) if found])
