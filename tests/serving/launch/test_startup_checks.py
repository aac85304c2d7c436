from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
import torch

from engines.config.quantization import QuantizationConfig, WeightFormat
from engines.errors import ConfigError
from serving.config import ServerConfig
from serving.deployments.server_process import free_ports
from serving.errors import ModelError, ServerError
from serving.launch.memory_preset import memory_plan
from serving.launch.startup_checks import check_memory, check_startup
from tests.support.quantized import write_pocket


def config(folder: Path, **settings: object) -> ServerConfig:
    ports = {f"{name}_port": port for name, port in free_ports()._asdict().items()}
    return ServerConfig.model_validate(
        {"recordings": folder / "recordings", "models_dir": folder, **ports, **settings}
    )


def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_server_that_can_start_is_let_start(tmp_path: Path) -> None:
    check_startup(config(tmp_path))
    assert (tmp_path / "recordings").is_dir()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
@pytest.mark.parametrize("setting", ["grpc_port", "http_port"])
def test_a_port_that_is_taken_is_named_with_its_flag(tmp_path: Path, host: str, setting: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        flag = f"--{setting.replace('_', '-')}"
        with pytest.raises(
            ConfigError, match=f"port {port} of {host} cannot be had: .*; choose another one by {flag}"
        ):
            check_startup(config(tmp_path, host=host, insecure=True, **{setting: port}))


def test_a_host_that_is_not_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the gRPC port \d+ of 203.0.113.9 cannot be had"):
        check_startup(config(tmp_path, host="203.0.113.9", insecure=True))


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nope"):
        check_startup(config(tmp_path, model="nope"))


def test_weights_that_are_not_here_are_refused_with_the_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"run `longtake download longlive-1.3b`"):
        check_startup(config(tmp_path, model="longlive-1.3b"))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the recordings folder .* cannot be made"):
        check_startup(config(tmp_path, recordings=tmp_path / "file" / "recordings"))


@pytest.mark.parametrize(
    ("weights", "capability", "dtype", "complaint"),
    [
        ("int8", (10, 0), "bfloat16", "sm_100 multiplies INT8 at a small part"),
        ("fp8", (8, 6), "bfloat16", "sm_86 does not multiply FP8"),
        ("fp8", (9, 0), "float32", "say --dtype bfloat16"),
    ],
)
def test_a_format_that_the_card_does_not_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: WeightFormat, capability: tuple[int, int],
    dtype: str, complaint: str,
) -> None:  # fmt: skip
    write_pocket(tmp_path / "small", QuantizationConfig(weights))
    one_card(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    asked = config(tmp_path, model="small", device="cuda", dtype=dtype, preset="none")
    with pytest.raises(ConfigError, match=complaint):
        check_startup(asked)


def test_windows_in_int8_count_as_what_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    asked = {"device": "cuda", "text_device": "cuda", "dtype": "bfloat16"}
    plain, int8 = config(tmp_path, **asked), config(tmp_path, **asked, kernels="keys=int8,values=int8")
    needed = memory_plan(int8).nbytes(int8.slots)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (needed, needed))
    check_memory(int8, memory_plan(int8))
    with pytest.raises(ConfigError, match=r"pocket with 2 sessions needs .* are free; take --slots 1"):
        check_memory(plain, memory_plan(plain))


def test_ports_and_devices_of_a_cluster_that_is_there_are_not_looked_for_on_this_machine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        there = {"address": f"127.0.0.1:{port}", "grpc_port": port}
        check_startup(config(tmp_path, device="cuda", **there))
    with pytest.raises(
        ServerError, match=f"no Ray cluster answers at 127.0.0.1:{port}: Connection refused; start"
    ):
        check_startup(config(tmp_path, **there))


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch finds no CUDA device here"):
        check_startup(config(tmp_path, device="cuda"))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({"denoisers": 4}, 4), ({"stages": "separate", "decoders": 2}, 4), ({"device": "cpu", "denoisers": 4}, 0)],
)
def test_replicas_that_need_more_gpus_than_there_are_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], needed: int
) -> None:
    one_card(monkeypatch)
    asked = config(tmp_path, **{"device": "cuda", "preset": "none", **settings})
    problem = f"{needed} replicas need a GPU each, and 1 are here; take fewer --denoisers or --decoders"
    with pytest.raises(ConfigError, match=problem) if needed else contextlib.nullcontext():
        check_startup(asked)


def test_an_encoder_that_does_not_open_is_refused_unless_a_cluster_is_to_open_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h264_nvenc does not open here; choose another one by --encoder"):
        check_startup(config(tmp_path, encoder="h264_nvenc"))
    check_startup(config(tmp_path, encoder="h264_nvenc", address="auto"))
