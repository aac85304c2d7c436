from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.errors import ConfigError
from kernels.dispatch import EAGER
from serving.auth import REREAD_S, OperatorToken, Tokens, TokensFile
from serving.config import Limits, ServerConfig, problem_of


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": 0}, "slots is 0: input should be greater than or equal to 1"),
        ({"batch": -1}, "batch is -1"),
        ({"denoisers": 2000}, "denoisers is 2000"),
        ({"grpc_port": 0}, "grpc_port is 0"),
        ({"http_port": 65536}, "http_port is 65536"),
        ({"stages": "both"}, "stages is 'both': input should be 'shared' or 'separate'"),
        ({"dtype": "int8"}, "dtype is 'int8': input should be 'float32' or 'bfloat16'"),
        ({"codec": "none"}, "codec is 'none': input should be 'own' or 'tiny'"),
        ({"encoder": "av1"}, "encoder is 'av1': input should be 'auto', 'libx264' or 'h264_nvenc'"),
        ({"sizes": ((480, 830),)}, "width 830 is not a positive multiple of 16"),
        ({"sizes": ((1088, 1920),)}, "sizes has 1088x1920, more than the 921600 pixels that are allowed"),
        ({"video_steps": "500,700"}, "steps (500, 700) are not descending"),
        ({"video_steps": (1200,)}, "steps (1200,) are not all within 0..1000"),
        ({"lease_s": 4000}, "lease_s is 4000"),
        ({"kernels": "atention=triton"}, "kernels 'atention=triton': unknown op 'atention'; known: attention"),
        ({"lease_s": float("nan")}, "lease_s is nan"),
        ({"sizes": "480"}, "'480' is not of the form HEIGHTxWIDTH"),
        ({"grpc_port": 8000}, "two ports are the same: 8000, 8000, 8002"),
        ({"slotz": 3}, "there is no setting slotz"),
        ({"limits": {"pixelz": 3}}, "there is no setting limits.pixelz"),
        ({"tokens": "/nowhere"}, "the tokens file '/nowhere' cannot be read"),
        ({"host": "0.0.0.0"}, "0.0.0.0 lets other machines in, and there are no tokens"),
        ({"host": "::"}, ":: lets other machines in, and there are no tokens"),
        ({"allowed_origins": ("*",)}, "'*' is no origin"),
        ({"address": "ray://head:10001"}, "a Ray client's; say HOST:PORT or auto on a node of the cluster"),
        (
            {"address": "local"},
            "address is 'local', which is no cluster that is there; leave it out for a new one",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerConfig(**options)
    assert words in problem_of(caught.value)


def test_other_machines_are_let_in_with_tokens_or_if_that_is_said() -> None:
    assert ServerConfig(host="0.0.0.0", insecure=True).host == "0.0.0.0"
    assert ServerConfig(host="0.0.0.0", tokens=Tokens({"anna": "0" * 64})).host == "0.0.0.0"


def test_a_config_goes_from_process_to_process_as_it_is() -> None:
    config = ServerConfig(sizes=((480, 832),), tokens=Tokens({"anna": "0" * 64}), limits=Limits(pixels=400_000))
    assert ServerConfig.model_validate_json(config.model_dump_json()) == config


def test_steps_of_videos_are_read_from_one_word() -> None:
    assert ServerConfig.model_validate({"video_steps": "850,500"}).video_steps == (850, 500)


def test_kernels_are_those_that_are_asked_for() -> None:
    assert ServerConfig().backends == EAGER
    assert ServerConfig(kernels="attention=library,keys=plain").backends == replace(EAGER, attention="library")
    with pytest.raises(ConfigError, match="kernels 'flash-attn': flash-attn needs a CUDA device"):
        _ = ServerConfig(kernels="flash-attn").backends


def test_a_machine_without_the_device_may_ask_for_its_kernels() -> None:
    assert ServerConfig(device="cuda", kernels="attention=triton").kernels == "attention=triton"


@pytest.mark.parametrize("name", vars(Limits()))
def test_every_limit_is_positive(name: str) -> None:
    with pytest.raises(ValidationError, match=f"limits.{name} is 0; it must be positive"):
        Limits(**{name: 0})


def test_without_tokens_everybody_is_one_caller() -> None:
    assert Tokens().caller(None) == Tokens().caller("anything") == ""


def tokens(folder: Path, text: str) -> Tokens:
    path = folder / "tokens"
    path.write_text(text)
    return Tokens.of_file(path)


def test_a_token_says_who_calls_and_another_one_nobody(tmp_path: Path) -> None:
    known = tokens(tmp_path, "# who\nanna secret-a\n\nberta secret-b\n")
    assert [known.caller(token) for token in ("secret-a", "secret-b")] == ["anna", "berta"]
    assert [known.caller(token) for token in ("secret-c", "", "SECRET-A", None)] == [None] * 4


def test_tokens_are_not_kept_but_as_digests(tmp_path: Path) -> None:
    known = tokens(tmp_path, "anna secret-a\n")
    assert known.digests == {"anna": hashlib.sha256(b"secret-a").hexdigest()}
    assert b"secret-a" not in pickle.dumps(known)


@pytest.mark.parametrize("line", ["anna", "anna a secret with spaces"])
def test_a_line_that_is_not_a_name_and_a_token_is_refused_by_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2: a line is a caller's name and a token"):
        tokens(tmp_path, f"berta secret-b\n{line}\n")


@pytest.mark.parametrize("caller", ["..", "a/b", ".anna", "a" * 65])
def test_a_caller_whose_name_could_be_no_folder_is_refused(tmp_path: Path, caller: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a caller"):
        tokens(tmp_path, f"{caller} secret-a\n")


def test_what_is_changed_in_a_file_of_tokens_counts_some_seconds_later(tmp_path: Path) -> None:
    now = [0.0]
    file = TokensFile(tokens(tmp_path, "anna secret-a\n"), lambda: now[0])
    tokens(tmp_path, "anna secret-a\nberta secret-b\n")
    assert file.tokens.caller("secret-b") is None
    now[0] += REREAD_S
    assert file.tokens.caller("secret-b") == "berta"
    tokens(tmp_path, "berta secret-c\n")
    now[0] += REREAD_S
    assert [file.tokens.caller(f"secret-{name}") for name in "abc"] == [None, None, "berta"]


@pytest.mark.parametrize("text", [None, "# nobody\n", "anna\n", "a/b secret\n"])
def test_a_file_of_tokens_that_went_wrong_changes_nothing_and_is_logged(
    tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    file = TokensFile(tokens(tmp_path, "anna secret-a\n"), lambda: now[0])
    if text is None:
        (tmp_path / "tokens").unlink()
    else:
        (tmp_path / "tokens").write_text(text)
    now[0] += REREAD_S
    assert file.tokens.caller("secret-a") == "anna"
    assert [record.message for record in caplog.records] == ["tokens kept as they were"]


def test_a_file_without_a_token_does_not_open_the_server_to_everybody(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token"):
        tokens(tmp_path, "# nobody yet\n")


def test_a_caller_or_a_token_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: anna is there already"):
        tokens(tmp_path, "anna secret-a\nanna secret-b\n")
    with pytest.raises(ConfigError, match="line 2: the token of anna is somebody else's already"):
        tokens(tmp_path, "berta secret-a\nanna secret-a\n")


def test_only_a_server_of_this_machine_without_tokens_minds_by_which_name_it_is_called() -> None:
    assert ServerConfig().origins.local_names_only
    assert not ServerConfig(host="0.0.0.0", insecure=True).origins.local_names_only
    assert not ServerConfig(tokens=Tokens({"anna": "digest"})).origins.local_names_only


def test_the_past_is_not_made_again_for_longer_than_a_request_is_waited_for() -> None:
    with pytest.raises(ValidationError, match=r"limits.replay_seconds is 46; .* not waited for longer than 45 s"):
        Limits(replay_seconds=46)


def test_a_snapshot_is_no_larger_than_a_message_that_carries_it() -> None:
    with pytest.raises(ValidationError, match=r"limits.snapshot_bytes is 134217729; .* of 134217728 bytes"):
        Limits(snapshot_bytes=(128 << 20) + 1)


def test_the_operators_token_is_read_from_its_file_each_time(tmp_path: Path) -> None:
    path = tmp_path / "operator"
    path.write_text("secret\n")
    operator = OperatorToken(path)
    assert (operator.is_of("secret"), operator.is_of("other"), operator.is_of("")) == (True, False, False)
    path.write_text("other\n")
    assert (operator.is_of("secret"), operator.is_of("other")) == (False, True)
    path.unlink()
    assert not operator.is_of("other")
    assert not OperatorToken(None).is_of("")


def test_only_a_server_with_operators_follows_an_address(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="public_address is films:9000, and there is no operator_token"):
        ServerConfig(public_address="films:9000")
    (tmp_path / "operator").write_text("secret\n")
    with pytest.raises(ValidationError, match=r"films:9000, where .* in the clear; say insecure"):
        ServerConfig(public_address="films:9000", operator_token=tmp_path / "operator")
    for followed in ({"public_address": "127.0.0.1:9000"}, {"public_address": "films:9000", "insecure": True}):
        assert ServerConfig.model_validate({"operator_token": tmp_path / "operator", **followed}).public_address
    with pytest.raises(ValidationError, match="public_address is 'films', which is not of the form HOST:PORT"):
        ServerConfig(public_address="films", operator_token=tmp_path / "operator")


@pytest.mark.parametrize("content", ["", "two words", None])
def test_a_file_without_one_token_is_no_operators_token(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "operator"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValidationError, match=r"cannot be read|is to have one token"):
        ServerConfig(operator_token=path)
