"""The Dockerfile as a text: clean, and with all in it that a pod of KubeRay's needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BUILD, RUNTIME = re.split(r"^FROM .*$", DOCKERFILE, flags=re.M)[1:]
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def installed(stage: str) -> set[str]:
    """Debian's packages that a stage installs."""
    ((words),) = re.findall(r"apt-get install ([^&]*)", stage)
    return {word for word in words.replace("\\", "").split() if not word.startswith("-")}


def test_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run((hadolint, ROOT / "Dockerfile"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_ignores_one_rule_each_time_with_the_reason_before_it() -> None:
    ignored = [lines for lines in pairwise(["", *DOCKERFILE.splitlines()]) if lines[1].startswith("# hadolint")]
    assert ignored
    assert all(before.startswith("# ") and line == "# hadolint ignore=DL3008" for before, line in ignored)


def test_stands_on_one_debian_pinned_by_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"docker\.io/library/debian:bookworm-slim@sha256:[0-9a-f]{64}", base)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["${BASE}", "${BASE}"]


def test_has_what_the_operators_probe_and_triton_call() -> None:
    assert {"bash", "wget", "grep", "gcc", "libc6-dev", "python3-dev"} <= installed(RUNTIME)


def test_sees_a_graphics_card_and_its_encoder() -> None:
    assert "NVIDIA_VISIBLE_DEVICES=all" in RUNTIME
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in RUNTIME


def test_runs_as_a_user_by_number() -> None:
    """Kubernetes cannot tell whether a name is root's."""
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == ["1000:1000"]
    assert "--uid 1000" in RUNTIME


def test_starts_no_ray_while_it_is_built() -> None:
    """It would leave the token of all that run the image inside it."""
    assert not re.search(r"ray\.init|ray start|longtake serve", DOCKERFILE)


def test_names_no_secret() -> None:
    declared = re.findall(r"^(?:ARG |ENV | +)(\w+)=", DOCKERFILE, re.M)
    assert not [name for name in declared if re.search("TOKEN|SECRET|PASSWORD|KEY|PIP_", name)]


def test_copies_code_only_after_what_it_needs() -> None:
    first, *_ = re.split(r"^COPY \. \.$", BUILD, flags=re.M)
    assert "pip install" in first
    assert re.findall(r"^COPY (.*)$", first, re.M) == ["pyproject.toml constraints.txt ./"]
    assert re.findall(r"^COPY --from=build (.*)$", RUNTIME, re.M) == [
        "/opt/longtake /opt/longtake",
        "/code /opt/longtake",
    ]


def test_mounts_nothing_of_another_stage() -> None:
    """podman would not see that it has changed, and keep the code of the build before."""
    assert not re.search(r"--mount=\S*from=", DOCKERFILE)


def test_says_which_version_and_license_it_is(project: dict[str, Any]) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\S+)="([^"]*)"', DOCKERFILE))
    about = project["project"]
    assert (labels["version"], labels["licenses"]) == (about["version"], about["license"])
    assert labels["description"] == about["description"]


def test_has_the_ray_that_the_project_asks_for(project: dict[str, Any], pins: dict[str, str]) -> None:
    asked = [Requirement(line) for line in project["project"]["dependencies"]]
    (ray,) = [requirement for requirement in asked if requirement.name == "ray"]
    assert ray.specifier.contains(pins["ray"])
    assert "'ray[default]'" in BUILD


def test_is_what_the_chart_runs(project: dict[str, Any], pins: dict[str, str]) -> None:
    chart = yaml.safe_load((ROOT / "helm" / "longtake" / "Chart.yaml").read_text())
    assert chart["annotations"]["longtake/ray"] == pins["ray"]
    assert chart["appVersion"] == project["project"]["version"]


def test_has_the_versions_that_the_project_is_tested_with() -> None:
    needed, code = re.findall(r"pip install((?:.*\\\n)*.*)", BUILD)
    assert "--constraint pins.txt" in needed
    assert "--no-deps" in code


def test_leaves_wheels_for_cpus_out_of_an_image_for_cuda(pins: dict[str, str]) -> None:
    """On CUDA torch says itself which Triton it needs."""
    (script,) = re.findall(r"cuda\) (sed .*) > pins.txt;", BUILD)
    made = subprocess.run(script, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"torch==={pins['torch'].removesuffix('+cpu')}" in made.splitlines()
    assert "+cpu" not in made
    assert "triton" not in made


def test_gets_nothing_but_the_project_itself(project: dict[str, Any]) -> None:
    """Neither .git nor environments nor what tests have written, whatever there will be."""
    code = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    rules = [line for line in IGNORED if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule for rule in rules if rule.startswith("!")} == {f"!{name}" for name in (*code, *files)}
    assert rules[-1] == "**/__pycache__"
