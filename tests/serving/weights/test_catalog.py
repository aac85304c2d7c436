from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engines.config.presets import PRESETS, preset
from engines.loading.footprint import memory_needed, session_bytes
from engines.loading.model import Model
from serving.cli.weights.models import ModelRow, model_rows, models_table
from serving.errors import DownloadError
from serving.weights.catalog import CATALOG, Role, catalog_entry, models_folder
from serving.weights.manifest import FileRecord, Manifest, RepoRecord, write_manifest

COMMIT = "c0ffee00" + "0" * 32


def fill(folder: Path, model: str) -> None:
    """What a finished download leaves behind, with tiny files."""
    records = []
    for repo in CATALOG[model].repos:
        files = tuple(file for file in CATALOG[model].files() if file.repo is repo)
        for file in files:
            path = folder / model / file.local
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"tiny")
        listed = tuple(FileRecord(file.local, 4, "") for file in files)
        records.append(RepoRecord(repo.id, COMMIT, "2026-01-01T00:00:00+00:00", "mit", "LICENSE", "text", listed))
    write_manifest(folder / model, Manifest(model, "http://127.0.0.1", tuple(records)))


def row(folder: Path, model: str) -> ModelRow:
    return next(row for row in model_rows(folder) if row.model == model)


def test_every_entry_is_a_preset_with_all_that_it_takes_to_run() -> None:
    needed = {Role.TRANSFORMER, Role.CODEC, Role.TEXT_ENCODER, Role.TOKENIZER}
    for name, entry in CATALOG.items():
        assert name in PRESETS
        assert needed <= {part.role for part in entry.parts if not part.optional}


def test_no_two_files_of_a_model_lie_in_one_place() -> None:
    for entry in CATALOG.values():
        places = [file.local for file in entry.files([Role.TINY_CODEC])]
        assert len(set(places)) == len(places)


def test_longlive_is_a_base_and_a_lora_over_the_codec_and_text_encoder_of_wan(tmp_path: Path) -> None:
    entry = catalog_entry("longlive-1.3b")
    assert entry.locate(tmp_path, Role.LORA) == (tmp_path / "LongLive-1.3B/models/lora.pt",)
    assert entry.locate(tmp_path, Role.CODEC) == (tmp_path / "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",)
    folders = {path.parent for path in entry.locate(tmp_path, Role.TOKENIZER)}
    assert folders == {tmp_path / "Wan2.1-T2V-1.3B/google/umt5-xxl"}


def test_a_role_that_a_model_lacks_has_no_files(tmp_path: Path) -> None:
    assert catalog_entry("self-forcing-1.3b").locate(tmp_path, Role.LORA) == ()


def test_the_tiny_codec_comes_only_when_asked_for() -> None:
    entry = catalog_entry("longlive-1.3b")
    tiny = {file.path for file in entry.files([Role.TINY_CODEC])} - {file.path for file in entry.files()}
    assert tiny == {"taew2_1.pth"}


def test_a_model_without_published_weights_lists_those_with() -> None:
    with pytest.raises(DownloadError, match=r"'tiny'; known: longlive-1\.3b, self-forcing-1\.3b"):
        catalog_entry("tiny")


def test_a_part_that_a_model_lacks_is_refused() -> None:
    with pytest.raises(DownloadError, match=r"self-forcing-1\.3b has no part 'lora'; optional ones: tiny-codec"):
        catalog_entry("self-forcing-1.3b").files([Role.LORA])


def test_the_models_folder_is_the_chosen_one_then_the_environments_then_the_cache() -> None:
    environment = {"LONGTAKE_MODELS": "/data/models"}
    assert models_folder(Path("/here"), environment) == Path("/here")
    assert models_folder(None, environment) == Path("/data/models")
    assert models_folder(None, {"LONGTAKE_MODELS": "~/weights"}) == Path.home() / "weights"
    for empty in ({}, {"LONGTAKE_MODELS": ""}):
        assert models_folder(None, empty) == Path.home() / ".cache/longtake/models"


def test_memory_is_that_of_the_networks_and_one_session(model: Model) -> None:
    needed = sum(session_bytes(model.config, model.config.stream, torch.float32))
    for network in (model.transformer, model.vae, model.text_encoder):
        assert isinstance(network, nn.Module)
        needed += sum(parameter.nbytes for parameter in network.parameters())
    assert memory_needed(model.config, torch.float32) == needed


def test_longlive_in_bfloat16_needs_twenty_gigabytes() -> None:
    assert memory_needed(preset("longlive-1.3b"), torch.bfloat16) == pytest.approx(20.03e9, rel=0.01)


def test_a_model_that_was_never_downloaded_is_not_here(tmp_path: Path) -> None:
    found = row(tmp_path, "longlive-1.3b")
    assert found.here == "no"
    assert [(source.revision, source.licence) for source in found.sources] == [
        (None, "see the model card"),
        (None, "apache-2.0"),
    ]


def test_a_downloaded_model_shows_its_revision_and_the_license_on_record(tmp_path: Path) -> None:
    fill(tmp_path, "self-forcing-1.3b")
    found = row(tmp_path, "self-forcing-1.3b")
    assert found.here == "yes"
    assert {(source.revision, source.licence) for source in found.sources} == {(COMMIT, "mit")}


def test_a_download_that_broke_off_is_incomplete(tmp_path: Path) -> None:
    fill(tmp_path, "longlive-1.3b")
    (tmp_path / "longlive-1.3b/manifest.json").unlink()
    assert row(tmp_path, "longlive-1.3b").here == "incomplete"


@pytest.mark.parametrize(
    ("path", "content"),
    [("LongLive-1.3B/models/lora.pt", "changed"), ("manifest.json", "{")],
    ids=["a file", "the manifest"],
)
def test_a_folder_that_was_tampered_with_is_damaged(tmp_path: Path, path: str, content: str) -> None:
    fill(tmp_path, "longlive-1.3b")
    (tmp_path / "longlive-1.3b" / path).write_text(content)
    assert row(tmp_path, "longlive-1.3b").here == "damaged"


def test_a_manifest_that_lacks_a_file_of_the_model_is_damaged(tmp_path: Path) -> None:
    fill(tmp_path, "longlive-1.3b")
    write_manifest(tmp_path / "longlive-1.3b", Manifest("longlive-1.3b", "", ()))
    assert row(tmp_path, "longlive-1.3b").here == "damaged"


def test_the_table_shows_every_model_with_where_it_comes_from(tmp_path: Path) -> None:
    fill(tmp_path, "self-forcing-1.3b")
    lines = models_table(model_rows(tmp_path))
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["MODEL", *PRESETS]
    column = lines[0].index("WHAT IT IS")
    below = [line[column:] for line in lines if line.startswith(" ")]
    assert "gdhe17/Self-Forcing@c0ffee00: mit" in below
    assert "Wan-AI/Wan2.1-T2V-1.3B: apache-2.0" in below


@pytest.mark.parametrize(
    ("model", "work"),
    [
        ("longlive-1.3b", "4 steps; 5 passes for 3 latent frames; made for endless streams"),
        (
            "causal-rcm-1.3b",
            "2 steps, 4 in the first block; 2 passes for a latent frame; not made for endless streams",
        ),
        (
            "one-forcing-1.3b",
            "1 step, 4 in the first block; 2 passes for a latent frame; not made for endless streams",
        ),
    ],
)
def test_a_model_says_how_much_work_a_block_is(tmp_path: Path, model: str, work: str) -> None:
    assert row(tmp_path, model).work == work
    assert work in "\n".join(models_table([row(tmp_path, model)]))


def test_the_state_dict_of_each_file_is_named_where_it_has_several() -> None:
    named = {name: entry.entry for name, entry in CATALOG.items() if entry.entry is not None}
    assert named == {"causal-forcing-1.3b": "generator", "causal-forcing-framewise-1.3b": "generator_ema"}
