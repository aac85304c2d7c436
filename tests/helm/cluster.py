"""Real helm and kubectl against the stand-in for a Kubernetes API server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helm.fake_api import KINDS, fake_api, plural

COMMAND_S = 120
"""How long a command may take, on a crowded machine as well."""


class HelmFailed(Exception):
    """A command ended with an error, and said this."""


@dataclass(frozen=True)
class Cluster:
    """A cluster without anything in it, and the programs that talk to it."""

    programs: Path
    env: Mapping[str, str]

    def helm(self, *words: str | Path) -> str:
        """Run helm and give what it printed.

        Raises:
            HelmFailed: with what it said.
        """
        return self._run("helm", *words)

    def objects(self) -> dict[str, dict[str, Any]]:
        """All that is there, by `Kind/name`, as kubectl gets it."""
        kinds = ",".join(plural(kind) for kinds in KINDS.values() for kind in kinds)
        found = json.loads(self._run("kubectl", "get", kinds, "--output", "json"))["items"]
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}

    def _run(self, program: str, *words: str | Path) -> str:
        done = subprocess.run(
            [self.programs / program, *words],
            env=self.env, capture_output=True, text=True, check=False, timeout=COMMAND_S,
        )  # fmt: skip
        if done.returncode:
            raise HelmFailed(done.stderr)
        return done.stdout


@contextmanager
def cluster(
    programs: Path, folder: Path, validate: Callable[[Mapping[str, Any]], str | None]
) -> Iterator[Cluster]:
    """A cluster that refuses what `validate` finds something wrong with; a folder is home to helm and kubectl."""
    with fake_api(validate) as address:
        config = folder / "kubeconfig"
        config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "namespace": "videos"}}],
        }))  # fmt: skip
        yield Cluster(programs, {"PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": str(config)})
