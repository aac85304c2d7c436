"""What `longtake doctor` says of this host, and of what is wrong with it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from engines.config.quantization import QuantizationConfig
from serving.cli.main import main
from serving.deployments.server_process import free_ports, port_options
from serving.launch.doctor import Finding, package
from serving.weights.manifest import FileRecord, Manifest, RepoRecord, write_manifest
from tests.support.quantized import write_pocket

DOCTOR = (sys.executable, "-m", "serving.cli.main", "doctor")
CHECKS = {
    "python", "torch", "ray", "triton", "av", "packages", "driver", "device", "weights", "kernels", "encoder",
    "memory", "/dev/shm", "open files", "recordings", "Ray's files", "gRPC port", "page port", "metrics port",
}  # fmt: skip


class Doctor:
    """The command line in a folder of its own, for ports that are free unless others are said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def examined(self, *options: str) -> tuple[int, dict[str, Finding]]:
        """The exit code, and what was found."""
        folders = ("--recordings", str(self._folder / "recordings"), "--models-dir", str(self._folder))
        code = main(["doctor", "--device", "cpu", *port_options(free_ports()), *folders, *options])
        return code, findings(self._capsys.readouterr().out)

    def failed(self, *options: str) -> dict[str, str]:
        code, found = self.examined(*options)
        assert code == 1
        return {name: finding.found for name, finding in found.items() if finding.status == "failed"}


def findings(output: str) -> dict[str, Finding]:
    found = {}
    for line in output.splitlines():
        status, name = line[:8].strip(), line[9:22].strip()
        assert status in ("ok", "warning", "failed"), line
        found[name] = Finding(status, name, line[23:])  # type: ignore[arg-type]
    return found


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(tmp_path, capsys)


def test_a_host_that_can_serve_gets_a_line_for_each_check_and_nothing_is_left_behind(
    doctor: Doctor, tmp_path: Path
) -> None:
    code, found = doctor.examined()
    assert code == 0
    assert set(found) == CHECKS
    assert found["weights"].found.startswith("pocket is whole")
    assert found["encoder"] == Finding("ok", "encoder", "libx264")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named_with_its_flag(doctor: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = doctor.failed("--grpc-port", str(port))
    assert list(failed) == ["gRPC port"]
    assert f"{port} of 127.0.0.1 cannot be had: Address already in use; choose" in failed["gRPC port"]


def test_weights_that_are_not_here_or_not_whole_are_named_with_the_command_that_gets_them(
    doctor: Doctor, tmp_path: Path
) -> None:
    asked = ("--model", "longlive-1.3b")
    assert "is not in" in doctor.failed(*asked)["weights"]
    folder = tmp_path / "longlive-1.3b"
    folder.mkdir()
    (folder / "base.pt").write_bytes(b"half")
    record = RepoRecord("x/y", "main", "", "", "", "", (FileRecord("base.pt", 8, ""),))
    write_manifest(folder, Manifest("longlive-1.3b", "", (record,)))
    weights = doctor.failed(*asked)["weights"]
    assert "base.pt: has 4 bytes, not 8; run `longtake download longlive-1.3b` again" in weights


def test_a_gpu_that_is_asked_for_and_not_there_has_failed_and_the_rest_is_looked_at(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    failed = doctor.failed("--device", "cuda", "--model", "longlive-1.3b")
    assert {"driver", "device", "compiler", "weights"} == set(failed)
    assert "torch finds no CUDA device here" in failed["device"]


def test_a_format_that_the_card_does_not_multiply_has_failed(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pocket(tmp_path / "small", QuantizationConfig("int8"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (180 * 10**9, 190 * 10**9))
    failed = doctor.failed("--device", "cuda", "--model", "small")
    assert "sm_100 multiplies INT8 at a small part of its rate of FP8; serve one that" in failed["kernels"]


def test_an_encoder_that_is_asked_for_and_does_not_open_has_failed(doctor: Doctor) -> None:
    assert "h264_nvenc does not open here" in doctor.failed("--encoder", "h264_nvenc")["encoder"]


def test_a_server_that_is_larger_than_the_host_is_told_what_it_needs(doctor: Doctor) -> None:
    assert "take fewer --denoisers" in doctor.failed("--denoisers", "1000")["memory"]


def test_a_folder_that_cannot_be_written_to_has_failed(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = doctor.failed("--recordings", str(tmp_path / "file" / "recordings"))
    assert "choose another one by --recordings" in failed["recordings"]


def test_a_cluster_that_does_not_answer_has_failed_and_its_ports_are_not_looked_for_here(doctor: Doctor) -> None:
    address = f"127.0.0.1:{free_ports().grpc}"
    failed = doctor.failed("--address", address)
    assert failed == {
        "cluster": f"no Ray cluster answers at {address}: Connection refused; start one by `ray start --head`, or "
        "leave --address out"
    }


@pytest.mark.parametrize(
    ("said", "code", "status", "words"),
    [
        ("NVIDIA H200, 570.1, 143771 MiB", 0, "ok", "NVIDIA H200, 570.1, 143771 MiB"),
        (
            "Driver/library version mismatch",
            18,
            "failed",
            "says: Driver/library version mismatch; install the driver",
        ),
    ],
)
def test_what_the_driver_says_is_shown(
    doctor: Doctor, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    said: str, code: int, status: str, words: str,
) -> None:  # fmt: skip
    program = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    driver = doctor.examined()[1]["driver"]
    assert driver.status == status
    assert words in driver.found


def test_few_open_files_are_a_warning(tmp_path: Path) -> None:
    answer = subprocess.run(
        [*DOCTOR, *port_options(free_ports())], cwd=tmp_path, capture_output=True, text=True, check=True,
        timeout=120, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
    )  # fmt: skip
    files = findings(answer.stdout)["open files"]
    assert files.status == "warning"
    assert "1024 at once, at most 1024; raise it to 8192 or more" in files.found


def test_a_package_that_is_missing_or_of_another_version_is_named_with_the_command_that_gets_it() -> None:
    assert package(Requirement("torch>=2")).status == "ok"
    other, missing = package(Requirement("ray>=99")), package(Requirement("no-such-package>=1"))
    assert (other.status, missing.status) == ("failed", "failed")
    assert other.found.endswith("where >=99 is needed; run `pip install 'ray>=99'`")
    assert missing.found == "not installed; run `pip install 'no-such-package>=1'`"


def test_settings_that_cannot_be_are_refused_as_by_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--slots", "0"]) == 2
    assert "slots is '0'" in capsys.readouterr().err
