"""The commands of the READMEs that helm and kubectl run, against the stand-in for a Kubernetes API server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helm.cluster import Cluster, cluster
from tests.helm.schemas import problem_of
from tests.support.readme_commands import FILES, ROOT, commands_of
from tests.test_readmes import IN_A_CLUSTER

ALONE = {
    "helm install ": "helm uninstall videos --ignore-not-found",
    "kubectl create secret ": "kubectl delete secret longtake-tokens --ignore-not-found",
}
"""What a command needs before it, where the README names another way to do the same above it."""


def ran(there: Cluster, folder: Path, command: str) -> str:
    """What a shell command prints."""
    path = os.pathsep.join((str(there.programs), there.env["PATH"]))
    done = subprocess.run(
        ("bash", "-o", "pipefail", "-c", command), cwd=folder, env={**there.env, "PATH": path},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_the_commands_of_the_readmes_install_upgrade_and_roll_back(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    with cluster(programs, tmp_path, problem_of) as there:
        for command in (found for file in FILES for found in commands_of(file) if found.startswith(IN_A_CLUSTER)):
            for begins, first in ALONE.items():
                if command.startswith(begins):
                    ran(there, tmp_path, first)
            # The stand-in has no OpenAPI documents.
            applies = command.startswith(("helm install ", "helm upgrade "))
            ran(there, tmp_path, f"{command} --disable-openapi-validation" if applies else command)
        assert "Rollback to 1" in ran(there, tmp_path, "helm history videos")
        found = there.objects()["RayService/videos-longtake"]
    image = found["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "longtake:0.1.0"
