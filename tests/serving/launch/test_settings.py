from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from engines.errors import ConfigError
from engines.loading.lora import LoRAFile
from serving.config import ServerConfig
from serving.launch.settings import SettingsFlags


def settings(*flags: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    reader = SettingsFlags(parser)
    return reader.read(parser.parse_args(flags)).config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "longtake.toml"
    path.write_text('slots = 5\nbatch = 4\nsizes = ["64x96"]\n[limits]\npixels = 500_000\n')
    return path


def test_a_flag_counts_before_a_variable_and_that_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAKE_SLOTS", "6")
    monkeypatch.setenv("LONGTAKE_DENOISERS", "2")
    config = settings("--config", str(file), "--denoisers", "3")
    assert (config.denoisers, config.slots, config.batch) == (3, 6, 4)
    assert (config.sizes, config.limits.pixels) == (((64, 96),), 500_000)


def test_limits_that_are_not_named_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_LIMITS__PIXELS", "500000")
    limits = settings("--limits.sessions-per-token", "3").limits
    assert (limits.pixels, limits.sessions_per_token, limits.stream_seconds) == (500_000, 3, 600.0)


def test_the_file_can_be_named_by_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_CONFIG", str(file))
    assert settings().slots == 5


def test_tokens_are_read_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("anna secret\n")
    config = settings("--tokens", str(tmp_path / "tokens"), "--host", "0.0.0.0")
    assert config.tokens.caller("secret") == "anna"


@pytest.mark.parametrize("flags", [("--lora", "a.pt:0.5", "--lora", "b"), ("--lora", "a.pt:0.5,b")])
def test_loras_are_given_one_by_one_or_as_a_list(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    files = (LoRAFile(Path("a.pt").resolve(), 0.5), LoRAFile(Path("b").resolve()))
    assert settings(*flags).lora_files == files
    monkeypatch.setenv("LONGTAKE_LORA", "a.pt:0.5,b")
    assert settings().lora_files == files


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--slots", "0"), "slots is '0'"),
        (("--config", "/nowhere.toml"), "the config file '/nowhere.toml' cannot be read: "),
        (("--sizes", "64x96,large"), "'large' is not of the form HEIGHTxWIDTH"),
        (("--video-steps", "500,700"), "steps (500, 700) are not descending"),
        (("--video-steps", "many"), "video_steps.0 is 'many'"),
        (("--host", "0.0.0.0"), "there are no tokens"),
        (("--lora", "style.pt:nan"), "the weight of style.pt is nan"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(*flags)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_in_the_file_is_refused(file: Path) -> None:
    file.write_text("slotz = 3\n")
    with pytest.raises(ConfigError, match="there is no setting slotz"):
        settings("--config", str(file))


def test_a_variable_that_means_nothing_is_refused_with_what_it_may_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_SLOTZ", "3")
    with pytest.raises(ConfigError, match="LONGTAKE_SLOTZ is no setting of a server; did you mean LONGTAKE_SLOTS"):
        settings()


def test_variables_of_clients_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_TOKEN", "secret")
    assert settings().slots == 2
