"""The command line, run as a user runs it."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from engines.config.presets import preset
from engines.loading.model import Model
from serving.cli.main import main
from tests.support.published_files import random_lora

TIMELINE = """
version: 1
model: tiny-taehv
seed: 3
height: 32
width: 48
seconds: 5
cues:
  - frame: 0
    prompt: a red balloon over the sea
  - seconds: 2.98
    prompt: a red balloon over the sea, snow falls
    transition: {blocks: 2, method: slerp}
"""


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "timeline.yaml"
    path.write_text(TIMELINE)
    return path


def generate(source: Path, output: Path, *options: str) -> Path:
    assert main(["generate", str(source), "-o", str(output), *options]) == 0
    return output


def frames_of(film: Path) -> Tensor:
    with av.open(str(film)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def facts_of(film: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(film.with_suffix(".json").read_text())
    return facts


def test_a_film_is_whole_blocks_at_sixteen_frames_a_second(timeline: Path, tmp_path: Path) -> None:
    film = generate(timeline, tmp_path / "film.mp4")
    with av.open(str(film)) as container:
        video = container.streams.video[0]
        assert video.frames == 9 + 12 * 6
        assert video.average_rate == 16
        assert (video.height, video.width) == (32, 48)
    assert len(frames_of(film)) == 81
    assert facts_of(film)["frames_made"] == 81


def test_the_facts_say_when_a_cue_applied(timeline: Path, tmp_path: Path) -> None:
    facts = facts_of(generate(timeline, tmp_path / "film.mp4"))
    assert facts["cues"] == [
        {"asked_frame": 0, "frame": 0, "prompt": "a red balloon over the sea"},
        {"asked_frame": 48, "frame": 57, "prompt": "a red balloon over the sea, snow falls"},
    ]
    assert facts["complete"]


def test_the_same_command_gives_the_same_film_and_another_seed_another(timeline: Path, tmp_path: Path) -> None:
    first, second = (generate(timeline, tmp_path / f"{i}.mp4") for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    other = generate(timeline, tmp_path / "other.mp4", "--seed", "4")
    assert (frames_of(other).float() - frames_of(first).float()).abs().mean() > 1


def test_a_film_is_made_again_from_itself(timeline: Path, tmp_path: Path) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--seconds", "3", "--steps", "1000,500")
    timeline.unlink()
    film.with_suffix(".json").unlink()
    again = generate(film, tmp_path / "again.mp4")
    assert again.read_bytes() == film.read_bytes()


def test_options_come_before_the_timeline_and_that_before_the_model(timeline: Path, tmp_path: Path) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--size", "16x64", "--seconds", "0.1")
    assert frames_of(film).shape == (9, 16, 64, 3)
    stream = facts_of(film)["stream"]
    assert (stream["seed"], stream["steps"]) == (3, [1000, 750, 500, 250])


def stopped(timeline: Path, film: Path, number: signal.Signals, at: str) -> int:
    """The exit status of `generate`, sent a signal when it reports that block."""
    options = ["-o", str(film), "--seconds", "60", "--threads", "1"]
    command = [sys.executable, "-m", "serving.cli.main", "generate", str(timeline), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith(at):
            pass
        process.send_signal(number)
        process.stderr.read()
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_film_is_the_beginning_of_the_whole_one(
    timeline: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole = frames_of(generate(timeline, tmp_path / "whole.mp4", "--seconds", "20"))
    assert stopped(timeline, tmp_path / "part.mp4", number, "block 20/") == 130
    part = frames_of(tmp_path / "part.mp4")
    assert 9 + 12 * 19 <= len(part) < 9 + 12 * 79
    length = min(len(part), len(whole))
    assert torch.equal(part[:length], whole[:length])
    facts = facts_of(tmp_path / "part.mp4")
    assert (facts["frames_made"], facts["complete"]) == (len(part), False)


def test_a_command_that_is_interrupted_while_it_is_imported_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "serving", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == ""
    assert process.returncode == -signal.SIGINT


def test_a_film_that_is_killed_leaves_the_earlier_one(timeline: Path, tmp_path: Path) -> None:
    before = generate(timeline, tmp_path / "film.mp4", "--seconds", "1").read_bytes()
    assert stopped(timeline, tmp_path / "film.mp4", signal.SIGKILL, "block 3/") == -signal.SIGKILL
    assert (tmp_path / "film.mp4").read_bytes() == before
    assert facts_of(generate(timeline, tmp_path / "film.mp4", "--seconds", "2"))["complete"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.json", "film.mp4", "timeline.yaml"]


def test_a_file_that_happens_to_lie_where_the_facts_would_is_not_written_over(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"mine": true}')
    assert main(["generate", str(timeline), "-o", str(tmp_path / "other.mp4")]) == 2
    assert "other.json, where the facts of other.mp4 would be written, is there" in capsys.readouterr().err
    assert (tmp_path / "other.json").read_text() == '{"mine": true}'


def test_a_snapshot_is_continued_by_another_process(timeline: Path, tmp_path: Path) -> None:
    generate(timeline, tmp_path / "film.mp4", "--seconds", "8", "--snapshot-every", "4")
    (snapshot,) = tmp_path.glob("film.*.snapshot")
    assert snapshot.name == "film.00-04.312.snapshot"
    rest = generate(timeline, tmp_path / "rest.mp4", "--seconds", "8", "--from", str(snapshot))
    assert len(frames_of(rest)) == 129 - 69
    again = generate(rest, tmp_path / "again.mp4")
    assert again.read_bytes() == rest.read_bytes()


def test_another_snapshot_than_the_films_is_refused(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(timeline, tmp_path / "film.mp4", "--snapshot-every", "1")
    first, second = sorted(tmp_path.glob("film.*.snapshot"))[:2]
    rest = generate(timeline, tmp_path / "rest.mp4", "--from", str(first))
    first.write_bytes(second.read_bytes())
    assert main(["generate", str(rest), "-o", str(tmp_path / "again.mp4")]) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "again.mp4").exists()


def test_a_sheet_shows_the_film(timeline: Path, tmp_path: Path) -> None:
    generate(timeline, tmp_path / "film.mp4", "--sheet", str(tmp_path / "sheet.png"))
    page = Image.open(tmp_path / "sheet.png")
    assert page.width > 4 * 160
    assert len(page.convert("RGB").getcolors(1 << 20) or []) > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "33x48"], "height: 33 is no multiple of 16"),
        (["--steps", "500,750"], "steps: step 750 follows 500"),
        (["--model", "longlive"], "unknown model 'longlive'; known: causal-forcing-1.3b"),
        (["--model", "longlive-1.3b"], "run `longtake download longlive-1.3b`"),
        (["--sheet", "nowhere/sheet.png"], "nowhere is not a folder"),
        (["--from", "nothing.snapshot"], "nothing.snapshot cannot be read"),
        (["--from", "timeline.yaml"], "bytes are not a snapshot"),
        (["--sheet", "sheet.xyz"], "sheet.xyz does not end in .png or .jpg"),
        (["--sheet", "timeline.yaml"], "timeline.yaml does not end in .png or .jpg"),
        (["--device", "cuda"], "there is no CUDA device here"),
        (["--codec", "tiny"], "tiny-taehv has no tiny codec beside its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_written_when_the_input_is_refused(
    timeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGTAKE_MODELS", str(tmp_path / "models"))
    assert main(["generate", str(timeline), "-o", "film.mp4", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [timeline]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--snapshot-every", "0", "0 is not above 0"),
        ("--seconds", "nan", "nan is not above 0"),
        ("--seconds", "90000", "at most 86400 s"),
        ("--device", "abacus", "choose from"),
        ("--threads", "0", "0 is outside 1..1024"),
        ("--size", "480p", "'480p' is not of the form HEIGHTxWIDTH"),
        ("--steps", "1000;500", "'1000;500' is not a list of steps"),
    ],
)
def test_an_option_that_says_nothing_useful_is_refused(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4"), option, value])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [timeline]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "the following arguments are required: COMMAND; see `longtake --help`"),
        ("generate", "the following arguments are required: source, -o/--output; see `longtake generate --help`"),
        ("timeline", "the following arguments are required: COMMAND; see `longtake timeline --help`"),
        ("sessions stop", "the following arguments are required: session; see `longtake sessions stop --help`"),
        ("play film.yaml --speed 2", "unrecognized arguments: --speed 2; see `longtake --help`"),
    ],
)
def test_words_that_no_command_takes_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert capsys.readouterr().err == f"longtake: {said}\n"


def test_a_film_is_not_written_over_the_one_it_is_made_from(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--seconds", "1")
    before = film.read_bytes()
    assert main(["generate", str(film), "-o", str(film)]) == 2
    assert "would be written over film.mp4" in capsys.readouterr().err
    assert film.read_bytes() == before


def test_a_timeline_is_not_written_over_by_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = tmp_path / "film.json"
    timeline.write_text('{"version": 1, "seconds": 1, "cues": [{"frame": 0, "prompt": "a house by the sea"}]}')
    before = timeline.read_bytes()
    assert main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]) == 2
    assert "film.json would be written over" in capsys.readouterr().err
    assert timeline.read_bytes() == before
    assert list(tmp_path.iterdir()) == [timeline]


def test_a_prompt_of_which_nothing_is_left_is_refused_before_the_film_begins(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline.write_text(TIMELINE.replace("a red balloon over the sea, snow falls", '"&nbsp;"'))
    assert main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]) == 2
    assert "cues[1].prompt: the prompt is empty once '&nbsp;' is cleaned" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [timeline]


def test_a_folder_is_no_place_for_a_film(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("film.mp4").mkdir()
    assert main(["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]) == 2
    assert "film.mp4 cannot be written: Is a directory" in capsys.readouterr().err


@pytest.fixture
def snapshot(timeline: Path, tmp_path: Path) -> Path:
    """Taken at frame 21 of the film."""
    folder = tmp_path / "first"
    folder.mkdir()
    generate(timeline, folder / "film.mp4", "--seconds", "2", "--snapshot-every", "1")
    return next(folder.glob("film.*.snapshot"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seed", "9", "seed 9 is asked for, but the snapshot goes on with 3"),
        ("--size", "16x48", "height 16 is asked for, but the snapshot goes on with 32"),
        ("--steps", "1000", r"steps (1000,) is asked for"),
        ("--seconds", "1", "the film begins at frame 21 and ends at frame 21"),
    ],
)
def test_a_snapshot_goes_on_as_it_began(
    timeline: Path,
    tmp_path: Path,
    snapshot: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    arguments = ["generate", str(timeline), "-o", str(tmp_path / "rest.mp4"), "--from", str(snapshot)]
    assert main([*arguments, option, value]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rest.mp4").exists()


def test_a_snapshot_continues_under_another_timeline(timeline: Path, tmp_path: Path, snapshot: Path) -> None:
    as_before = generate(timeline, tmp_path / "same.mp4", "--seconds", "4", "--from", str(snapshot))
    timeline.write_text(TIMELINE.replace("a red balloon over the sea", "a green dragon in a cave"))
    other = generate(timeline, tmp_path / "other.mp4", "--seconds", "4", "--from", str(snapshot))
    assert (frames_of(other).float() - frames_of(as_before).float()).abs().mean() > 0.01
    assert facts_of(other)["cues"][0]["prompt"] == "a green dragon in a cave"


def test_a_film_finds_the_snapshot_it_continued_from_another_folder(
    timeline: Path, tmp_path: Path, snapshot: Path
) -> None:
    rest = generate(timeline, tmp_path / "rest.mp4", "--seconds", "3", "--from", str(snapshot))
    assert facts_of(rest)["start"]["snapshot"] == f"first/{snapshot.name}"
    assert generate(rest, tmp_path / "again.mp4").read_bytes() == rest.read_bytes()


def test_a_film_can_be_made_again_in_another_dtype(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--seconds", "0.1")
    generate(film, tmp_path / "again.mp4", "--dtype", "bfloat16")
    assert "made with dtype float32, here it is bfloat16" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_sees_what_pyav_sees(timeline: Path, tmp_path: Path) -> None:
    film = generate(timeline, tmp_path / "film.mp4")
    entries = "stream=nb_frames,r_frame_rate,avg_frame_rate,height,width"
    probe = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(film)]
    (stream,) = json.loads(subprocess.run(probe, capture_output=True, check=True).stdout)["streams"]
    assert (stream["r_frame_rate"], stream["avg_frame_rate"]) == ("16/1", "16/1")
    assert (stream["nb_frames"], stream["height"], stream["width"]) == ("81", 32, 48)


def test_a_film_of_other_weights_is_not_made_again(
    timeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--seconds", "1")
    monkeypatch.setattr("serving.weights.loader.RANDOM_SEED", 1)
    assert main(["generate", str(film), "-o", str(tmp_path / "again.mp4")]) == 2
    assert "made with other weights of tiny-taehv: random weights@seed 0" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_for_the_model_is_pointed_out(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline.write_text(TIMELINE.replace("over the sea\n", "over the sea" + " and the land" * 20 + "\n"))
    generate(timeline, tmp_path / "film.mp4", "--seconds", "4")
    cut = len("a red balloon over the sea") + 20 * len(" and the land") - 255
    said = capsys.readouterr().err
    assert f"does not read the last {cut} tokens of the prompt 'a red balloon over the sea" in said


def test_a_timeline_is_explained(timeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeline", "check", str(timeline)]) == 0
    said = capsys.readouterr().out
    assert "frame 48 (00:03.000), applies at frame 57" in said
    assert "80 frames asked, 81 made" in said


def test_nothing_of_a_file_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "\x1b]0;mine\x07.json"
    prompt = "a \x1b[31mred\x1b[0m \x9b1m \u202e lake"
    file.write_text(json.dumps({"model": "\x1b[31m", "cues": [{"frame": 0, "prompt": prompt}]}))
    assert main(["timeline", "check", str(file)]) == 0
    file.write_text('{"cues": [{"frame": 0, "prompt": ""}]}')
    assert main(["timeline", "check", str(file)]) == 2
    said = capsys.readouterr()
    assert "a \\x1b[31mred\\x1b[0m \\x9b1m \\u202e lake" in said.out
    assert "control characters, which are taken away before the model reads it: '\\x1b'" in said.out
    assert "\\x1b]0;mine\\x07.json: cues[0].prompt: the prompt is empty" in said.err
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


def test_models_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--models-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "longlive-1.3b" in said
    assert "tiny-taehv" in said


def test_a_model_that_is_required_and_not_here_is_an_error_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "longlive-1.3b", "--require", "--models-dir", str(tmp_path)]) == 2
    assert "longtake download longlive-1.3b" in capsys.readouterr().err
    assert main(["models", "pocket", "--require", "--models-dir", str(tmp_path)]) == 0
    assert main(["models", "--require"]) == 2
    assert "name it" in capsys.readouterr().err


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """For the model of the timeline."""
    factors = random_lora(Model.random(preset("tiny-taehv"), 0).transformer)
    save_file(factors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_a_lora_changes_a_film_and_is_in_its_facts(timeline: Path, tmp_path: Path, lora: Path) -> None:
    plain = generate(timeline, tmp_path / "plain.mp4", "--seconds", "1")
    off = generate(timeline, tmp_path / "off.mp4", "--seconds", "1", "--lora", f"{lora}:0")
    both = generate(
        timeline, tmp_path / "both.mp4", "--seconds", "1", "--lora", f"{lora}:0.5", "--lora", str(lora)
    )
    assert torch.equal(frames_of(off), frames_of(plain))
    assert not torch.equal(frames_of(both), frames_of(plain))
    sha256 = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert facts_of(both)["loras"] == [
        {"file": "style.safetensors", "weight": weight, "sha256": sha256} for weight in (0.5, 1.0)
    ]


def test_a_film_with_a_lora_is_made_again_with_the_same_one(
    timeline: Path, tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = generate(timeline, tmp_path / "film.mp4", "--seconds", "0.1", "--lora", f"{lora}:0.5")
    assert generate(film, tmp_path / "again.mp4").read_bytes() == film.read_bytes()
    moved = lora.rename(tmp_path / "moved.safetensors")
    assert main(["generate", str(film), "-o", str(tmp_path / "none.mp4")]) == 2
    assert r"LoRA style.safetensors:0.5 (SHA-256 " in capsys.readouterr().err
    found = generate(film, tmp_path / "found.mp4", "--lora", f"{moved}:0.5")
    assert torch.equal(frames_of(found), frames_of(film))
    save_file({}, lora)
    assert main(["generate", str(film), "-o", str(tmp_path / "none.mp4")]) == 2
    other = generate(film, tmp_path / "other.mp4", "--lora", f"{moved}:0.7")
    assert "made with other LoRAs" in capsys.readouterr().err
    assert facts_of(other)["loras"][0]["weight"] == 0.7


def test_a_snapshot_does_not_go_on_with_another_lora(
    timeline: Path, tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(timeline, tmp_path / "film.mp4", "--seconds", "3", "--snapshot-every", "1", "--lora", str(lora))
    snapshot = next(iter(sorted(tmp_path.glob("film.*.snapshot"))))
    assert main(["generate", str(timeline), "-o", str(tmp_path / "rest.mp4"), "--from", str(snapshot)]) == 2
    assert "here it is" in capsys.readouterr().err
    assert not (tmp_path / "rest.mp4").exists()
    generate(timeline, tmp_path / "rest.mp4", "--from", str(snapshot), "--lora", str(lora))


@pytest.mark.parametrize("command", ["generate", "serve"])
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("none.safetensors", "none.safetensors cannot be read: No such file"),
        ("timeline.yaml:0.5", "timeline.yaml is neither a safetensors file nor"),
    ],
)
def test_a_lora_that_cannot_be_merged_is_refused_before_anything_begins(
    timeline: Path, tmp_path: Path, command: str, given: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [str(timeline), "-o", str(tmp_path / "film.mp4")] if command == "generate" else []
    assert main([command, *made, "--lora", str(tmp_path / given)]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()


def test_what_computes_each_operation_is_printed_and_kept(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(timeline, tmp_path / "film.mp4", "--seconds", "0.5")
    said = "reference: attention, batched_attention, prompt_attention"
    assert f"kernels: {said}" in capsys.readouterr().err
    assert json.loads((tmp_path / "film.json").read_text())["kernels"].startswith(said)


def test_kernels_that_cannot_run_here_are_refused(
    timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(timeline), "-o", str(tmp_path / "film.mp4")]
    assert main([*arguments, "--device", "cpu", "--kernels", "flash-attn"]) == 2
    assert "flash-attn needs a CUDA device; the device is cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--kernels", "fast"])
    assert "unknown choice 'fast'; known: auto, reference" in capsys.readouterr().err


def test_no_command_sends_a_token_to_another_host_in_the_clear(
    timeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGTAKE_TOKEN", "geheim")
    film = str(timeline.with_suffix(".mp4"))
    for command in (["sessions", "list"], ["sessions", "stop", "x"], ["play", str(timeline), "-o", film]):
        assert main([*command, "--server", "video.example:9000"]) == 2
        assert "would go to video.example:9000 in the clear" in capsys.readouterr().err
