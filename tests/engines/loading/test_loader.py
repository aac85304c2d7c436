from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.loading import ResidentPeak, nbytes
from engines.config.networks import TAEHVConfig
from engines.config.presets import preset
from engines.errors import ConfigError, WeightsError
from engines.loading.footprint import parameter_bytes
from engines.loading.loader import (
    ModelFiles,
    load_model,
    load_networks,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from engines.loading.model import NETWORKS, Model, Network, build_vae
from engines.text.prompt_encoder import PromptEncoder
from engines.vae.taehv import TAEHV
from engines.vae.wan_vae import WanVAE
from engines.wan.transformer import CausalTransformer
from tests.support.generators import generator_for
from tests.support.published_files import random_lora, train_tokenizer
from tests.support.rollouts import roll, roll_pictures

TINY = preset("tiny")
FP32 = torch.float32
State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A tiny LongLive as it would lie in a download, and what the files hold."""

    files: ModelFiles
    networks: Model
    codec: nn.Module
    lora: State

    def write_base(self, state: State) -> None:
        torch.save(
            {"generator": {f"model.{name}": tensor for name, tensor in state.items()}}, self.files.transformer
        )

    def write_lora(self, factors: State) -> None:
        assert self.files.lora is not None
        torch.save({"generator_lora": factors, "critic_lora": factors, "step": 700}, self.files.lora)

    def transformer(self, dtype: torch.dtype = FP32) -> CausalTransformer:
        return load_transformer(TINY.transformer, self.files.transformer, self.files.lora, "cpu", dtype)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    networks = Model.random(TINY, seed=1)
    assert isinstance(networks.vae, nn.Module)
    files = ModelFiles(
        transformer=tmp_path / "longlive_base.pt",
        codec=tmp_path / "Wan2.1_VAE.pth",
        text_encoder=tmp_path / "models_t5_umt5-xxl-enc-bf16.pth",
        tokenizer=tmp_path / "google" / "umt5-xxl",
        lora=tmp_path / "lora.pt",
    )
    made = Published(files, networks, networks.vae, random_lora(networks.transformer))
    made.write_base(networks.transformer.state_dict())
    made.write_lora(made.lora)
    torch.save(made.codec.state_dict(), files.codec)
    torch.save(networks.text_encoder.bfloat16().state_dict(), files.text_encoder)
    train_tokenizer(files.tokenizer)
    return made


def assert_same(network: nn.Module, expected: State) -> None:
    state = network.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def test_a_published_model_generates_and_decodes_a_block(published: Published) -> None:
    model, tokenizer = load_model(TINY, published.files, "cpu", FP32)
    prompt = PromptEncoder(tokenizer, model.text_encoder, capacity=1).encode("a red ball hits the cube")
    generator = generator_for(model)
    latents, pictures = roll_pictures(generator, generator.open(TINY.stream), 1, {0: prompt})
    assert latents.isfinite().all()
    assert pictures.shape == (9, 64, 96, 3)
    assert pictures.float().std() > 1


def plain_pt(state: State, path: Path) -> None:
    torch.save(state, path)


def longlive(state: State, path: Path) -> None:
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in state.items()}}, path)


def self_forcing(state: State, path: Path) -> None:
    wrapped = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    torch.save({"generator_ema": wrapped}, path)


def state_dict_entry(state: State, path: Path) -> None:
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, path)


def training_run(state: State, path: Path) -> None:
    """As LongLive writes on the way: the optimizer's state and another network beside the generator."""
    other = {f"model.{name}": torch.zeros(1) for name in state}
    own = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"generator": own, "critic": other, "generator_optimizer": {"state": {}}, "step": 200}, path)


@pytest.mark.parametrize("save", [save_file, plain_pt, longlive, self_forcing, state_dict_entry, training_run])
def test_a_transformer_is_read_from_each_form_in_which_it_is_published(
    save: Callable[[State, Path], None], published: Published, tmp_path: Path
) -> None:
    state = published.networks.transformer.state_dict()
    save(state, tmp_path / "transformer")
    assert_same(load_transformer(TINY.transformer, tmp_path / "transformer", None, "cpu", FP32), state)


def test_the_vae_and_its_constants_arrive_in_the_target_dtype(published: Published) -> None:
    codec = load_vae(TINY.vae, published.files.codec, "cpu", torch.bfloat16)
    expected = published.codec.bfloat16()
    assert_same(codec, expected.state_dict())
    for name, constant in codec.named_buffers():
        assert constant.dtype == torch.bfloat16, name
        assert torch.equal(constant, expected.get_buffer(name)), name


def test_the_text_encoder_published_in_bf16_is_read_as_fp32(published: Published) -> None:
    encoder = load_text_encoder(TINY.text_encoder, published.files.text_encoder, "cpu", FP32)
    assert_same(encoder, published.networks.text_encoder.float().state_dict())


@pytest.mark.parametrize("save", [plain_pt, save_file])
def test_a_taehv_that_grows_time_further_is_cut_to_the_last_frames(
    save: Callable[[State, Path], None], tmp_path: Path
) -> None:
    model = Model.random(preset("tiny-taehv"), seed=2)
    assert isinstance(model.vae, nn.Module)
    assert isinstance(model.config.vae, TAEHVConfig)
    state = {name: tensor.contiguous() for name, tensor in model.vae.state_dict().items()}
    grow = state["decoder.7.conv.weight"]
    save(state | {"decoder.7.conv.weight": torch.cat([torch.zeros_like(grow), grow])}, tmp_path / "taew2_1")
    assert_same(load_vae(model.config.vae, tmp_path / "taew2_1", "cpu", FP32), state)


def test_a_merged_lora_is_the_unmerged_one(published: Published) -> None:
    x = torch.randn(5, TINY.transformer.dim, generator=torch.Generator().manual_seed(4))
    name = "blocks.1.cross_attn.o"
    a, b = (published.lora[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
    layer = published.networks.transformer.get_submodule(name)
    unmerged = layer(x) + F.linear(F.linear(x, a), b)
    torch.testing.assert_close(published.transformer().get_submodule(name)(x), unmerged, atol=1e-5, rtol=0.0)


def test_every_linear_layer_of_the_blocks_is_merged_in_fp32_before_it_is_rounded(published: Published) -> None:
    merged = published.transformer(torch.bfloat16).state_dict()
    for name, weight in published.networks.transformer.state_dict().items():
        factors = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{factors}A.weight" in published.lora:
            a, b = published.lora[f"{factors}A.weight"], published.lora[f"{factors}B.weight"]
            assert torch.equal(merged[name], torch.addmm(weight, b, a).bfloat16()), name
        else:
            assert torch.equal(merged[name], weight.bfloat16()), name


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
    ],
    ids=["adapter name", "no prefix", "FSDP"],
)
def test_a_lora_is_read_under_its_other_names(rename: Callable[[str], str], published: Published) -> None:
    expected = published.transformer().state_dict()
    assert published.files.lora is not None
    torch.save({rename(name): factor for name, factor in published.lora.items()}, published.files.lora)
    assert_same(published.transformer(), expected)


def test_missing_leftover_and_misshapen_keys_are_named_in_one_error(published: Published) -> None:
    state = published.networks.transformer.state_dict()
    del state["head.modulation"]
    state["head.extra"] = torch.ones(1)
    state["blocks.0.ffn.0.bias"] = torch.ones(7)
    state["patch_embedding.bias"] = torch.ones(96, dtype=torch.int8)
    published.write_base(state)
    with pytest.raises(
        WeightsError,
        match=r"longlive_base\.pt does not fit CausalTransformer: 1 missing \(head\.modulation\); "
        r"1 left over \(head\.extra\); 1 of another shape \(blocks\.0\.ffn\.0\.bias is \[7\], not \[192\]\); "
        r"1 not floating point \(patch_embedding\.bias is torch\.int8\)",
    ):
        published.transformer()


def test_of_many_wrong_keys_some_are_named_and_all_counted(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match=r"empty\.pth .* 128 missing \(encoder\.\S+, \S+, \S+, and 125 more\)$"):
        load_vae(preset("tiny-taehv").vae, tmp_path / "empty.pth", "cpu", FP32)


def test_a_vae_is_no_text_encoder(published: Published) -> None:
    with pytest.raises(WeightsError, match=r"Wan2\.1_VAE\.pth does not fit UMT5Encoder: .* missing .* left over"):
        load_text_encoder(TINY.text_encoder, published.files.codec, "cpu", FP32)


Q = "base_model.model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q}.lora_B.weight": torch.ones(96, 5)}, r"lora_B\.weight is \[96, 5\], not \[96, 4\]"),
        ({f"{Q}.lora_A.weight": torch.ones(5, 96)}, r"lora_A\.weight is \[5, 96\], not \[4, 96\]"),
        ({f"{Q}.lora_A.weight": None}, r"1 missing \(blocks\.0\.self_attn\.q\.lora_A\.weight\)"),
        (
            {"base_model.model.patch_embedding.lora_A.weight": torch.ones(4, 96)},
            r"1 left over \(base_model\.model\.patch_embedding\.lora_A\.weight\)",
        ),
    ],
    ids=["rank of B", "rank of A", "partner", "target"],
)
def test_a_lora_that_does_not_fit_is_refused(
    change: dict[str, Tensor | None], message: str, published: Published
) -> None:
    changed = published.lora | change
    published.write_lora({name: factor for name, factor in changed.items() if factor is not None})
    with pytest.raises(
        WeightsError, match=rf"lora\.pt, a LoRA of rank 4, does not fit CausalTransformer: .*{message}"
    ):
        published.transformer()


def test_a_base_given_as_lora_is_refused(published: Published) -> None:
    swapped = replace(published.files, lora=published.files.transformer)
    with pytest.raises(WeightsError, match=r"longlive_base\.pt .*generator, and none of generator_lora"):
        load_model(TINY, swapped, "cpu", FP32)


def test_a_missing_tokenizer_is_refused_before_anything_is_loaded(published: Published, tmp_path: Path) -> None:
    nowhere = replace(published.files, tokenizer=tmp_path / "none", transformer=tmp_path / "none.pt")
    with pytest.raises(ConfigError, match=r"none/tokenizer\.json does not exist"):
        load_model(TINY, nowhere, "cpu", FP32)


def test_a_loaded_network_no_longer_needs_its_file(published: Published) -> None:
    transformer = published.transformer()
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    with published.files.transformer.open("r+b") as file:
        file.write(bytes(published.files.transformer.stat().st_size))
    assert_same(transformer, before)


def test_a_loaded_network_is_for_inference(published: Published) -> None:
    model, _ = load_model(TINY, published.files, "cpu", FP32)
    assert isinstance(model.vae, nn.Module)
    for network in (model.transformer, model.vae, model.text_encoder):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_text_encoder_can_live_on_a_device_of_its_own(published: Published) -> None:
    model, _ = load_model(TINY, published.files, "cpu", FP32, text_device="meta")
    assert model.text_encoder.device.type == "meta"
    assert model.transformer.device.type == "cpu"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_process_loads_only_the_network_that_it_needs(published: Published, network: Network) -> None:
    nowhere = published.files.transformer.parent / "nowhere"
    others: dict[str, Any] = {name: nowhere for name in ("tokenizer", *NETWORKS) if name != network}
    files = replace(published.files, **others)
    part = load_networks(TINY, files, "cpu", FP32, networks=[network])
    whole = load_networks(TINY, published.files, "cpu", FP32)
    assert part.identity == {name: mark for name, mark in whole.identity.items() if name == network}
    attributes = {"transformer": "transformer", "codec": "vae", "text_encoder": "text_encoder"}
    here = attributes.pop(network)
    assert_same(getattr(part, here), getattr(whole, here).state_dict())
    for absent in attributes.values():
        with pytest.raises(ConfigError, match="has not been loaded in this process"):
            getattr(part, absent)


def test_the_text_encoder_is_freed_once_the_model_is_let_go(published: Published) -> None:
    model, tokenizer = load_model(TINY, published.files, "cpu", FP32)
    prompt = PromptEncoder(tokenizer, model.text_encoder, capacity=1).encode("a blue cube")
    generator = generator_for(model)
    weights = weakref.ref(model.text_encoder.token_embedding.weight)
    del model
    assert weights() is None
    assert roll(generator, generator.open(TINY.stream), 1, {0: prompt}).isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("save", [save_file, longlive])
def test_loading_holds_no_more_than_the_model_and_one_tensor(
    save: Callable[[State, Path], None], tmp_path: Path
) -> None:
    config = replace(TINY.transformer, dim=384, layers=12, ffn_dim=1536)
    with torch.device("meta"):
        network = CausalTransformer(config)
    save({name: torch.ones(p.shape) for name, p in network.state_dict().items()}, tmp_path / "base")
    lora = {name.removeprefix("base_model.model."): factor for name, factor in random_lora(network).items()}
    torch.save(lora, tmp_path / "lora.pt")
    with ResidentPeak() as peak:
        loaded = load_transformer(config, tmp_path / "base", tmp_path / "lora.pt", "cpu", torch.bfloat16)
    largest = max(parameter.numel() for parameter in loaded.parameters()) * FP32.itemsize
    workspace = 8 << 20
    assert peak.grown.anonymous <= nbytes(loaded) + largest + workspace < 2 * nbytes(loaded)


def test_the_bytes_of_the_real_model_are_those_of_its_parameters() -> None:
    needed = parameter_bytes(preset("longlive-1.3b"), torch.bfloat16)
    assert needed.transformer == 2 * 1_418_996_800
    assert needed.codec == pytest.approx(2 * 126.9e6, rel=1e-3)
    assert needed.text_encoder == pytest.approx(11.4e9, rel=0.01)


def test_a_patch_embedding_saved_as_a_matrix_is_read_as_the_convolution(published: Published) -> None:
    state = dict(published.networks.transformer.state_dict())
    weight = state["patch_embedding.weight"]
    published.write_base(state | {"patch_embedding.weight": weight.flatten(1)})
    loaded = load_transformer(TINY.transformer, published.files.transformer, None, "cpu", FP32)
    assert torch.equal(loaded.patch_embedding.weight, weight)


@pytest.mark.parametrize("entry", ["generator", "generator_ema"])
def test_the_state_dict_that_is_named_is_read(published: Published, entry: str) -> None:
    state = published.networks.transformer.state_dict()
    held = {
        name: {f"model.{key}": factor * x for key, x in state.items()}
        for name, factor in (("generator", 1), ("generator_ema", 2))
    }
    torch.save(held, published.files.transformer)
    loaded = load_transformer(TINY.transformer, published.files.transformer, None, "cpu", FP32, entry=entry)
    factor = 1 if entry == "generator" else 2
    assert torch.equal(loaded.head.head.bias, factor * state["head.head.bias"])


def test_another_network_may_encode_than_decodes(published: Published, tmp_path: Path) -> None:
    tiny = replace(TINY, vae=preset("tiny-taehv").vae, encoder=TINY.vae)
    decoder = build_vae(tiny.vae)
    torch.save(decoder.state_dict(), tmp_path / "taehv.pth")
    files = replace(published.files, codec=tmp_path / "taehv.pth", encoder=published.files.codec)
    model = load_model(tiny, files, "cpu", FP32).model
    assert isinstance(model.vae, TAEHV)
    assert isinstance(model.encoder, WanVAE)
    assert set(model.identity) == {"transformer", "codec", "encoder"}
    with pytest.raises(WeightsError, match="has an encoder of its own"):
        load_model(tiny, replace(files, encoder=None), "cpu", FP32)
