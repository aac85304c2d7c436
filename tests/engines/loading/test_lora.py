"""LoRAs in the forms in which they are shared, merged into a tiny transformer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.config.presets import preset
from engines.errors import ConfigError, WeightsError
from engines.loading.loader import load_transformer
from engines.loading.lora import LoRAFile, require_loras_fit
from engines.loading.model import Model
from engines.wan.transformer import CausalTransformer

TINY = preset("tiny")
RANK, ALPHA = 8, 4.0
State = dict[str, Tensor]
Write = Callable[[Path, "Factors"], Path]


class Factors:
    """A pair for each attention layer of the blocks."""

    def __init__(self, network: CausalTransformer) -> None:
        generator = torch.Generator().manual_seed(2)
        named = network.blocks.named_modules(prefix="blocks")
        self.layers = {n: m for n, m in named if isinstance(m, nn.Linear) and "_attn." in n}
        self.down = {n: torch.randn(RANK, m.in_features, generator=generator) / 20 for n, m in self.layers.items()}
        self.up = {n: torch.randn(m.out_features, RANK, generator=generator) / 20 for n, m in self.layers.items()}

    def named(self, prefix: str, a: str, b: str) -> State:
        """As a file has them."""
        down = {f"{prefix}{name}.{a}": tensor.clone() for name, tensor in self.down.items()}
        return down | {f"{prefix}{name}.{b}": tensor.clone() for name, tensor in self.up.items()}

    def alphas(self, prefix: str, alpha: Tensor) -> State:
        return {f"{prefix}{name}.alpha": alpha.clone() for name in self.layers}


def peft(path: Path, factors: Factors, **config: Any) -> Path:
    path.mkdir()
    save_file(
        factors.named("base_model.model.", "lora_A.weight", "lora_B.weight"), path / "adapter_model.safetensors"
    )
    document = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (path / "adapter_config.json").write_text(json.dumps(document))
    return path


def peft_file(path: Path, factors: Factors) -> Path:
    return peft(path, factors) / "adapter_model.safetensors"


def comfy(path: Path, factors: Factors) -> Path:
    state = factors.named("diffusion_model.", "lora_A.weight", "lora_B.weight")
    save_file(state | factors.alphas("diffusion_model.", torch.tensor(ALPHA)), path)
    return path


def down_and_up(path: Path, factors: Factors) -> Path:
    state = factors.named("diffusion_model.", "lora_down.weight", "lora_up.weight")
    save_file(state | factors.alphas("diffusion_model.", torch.tensor([ALPHA], dtype=torch.bfloat16)), path)
    return path


def kohya(path: Path, factors: Factors) -> Path:
    state: State = {}
    for name in factors.layers:
        layer = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{layer}.lora_down.weight": factors.down[name], f"{layer}.lora_up.weight": factors.up[name]}
        state[f"{layer}.alpha"] = torch.tensor(int(ALPHA))
    save_file(state, path)
    return path


def adapter_name(path: Path, factors: Factors) -> Path:
    state = factors.named("base_model.model.model.", "lora_A.style.weight", "lora_B.style.weight")
    torch.save(state | factors.alphas("", torch.tensor(ALPHA)), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.fixture(scope="module")
def network() -> CausalTransformer:
    return Model.random(TINY, seed=1).transformer


@pytest.fixture(scope="module")
def factors(network: CausalTransformer) -> Factors:
    return Factors(network)


@pytest.fixture
def base(tmp_path: Path, network: CausalTransformer) -> Path:
    torch.save(network.state_dict(), tmp_path / "base.pt")
    return tmp_path / "base.pt"


def loaded(base: Path, *loras: LoRAFile, dtype: torch.dtype = torch.float32) -> State:
    return load_transformer(TINY.transformer, base, None, "cpu", dtype, loras=loras).state_dict()


def expected(network: CausalTransformer, factors: Factors, scale: float = ALPHA / RANK) -> State:
    state = dict(network.state_dict())
    for name in factors.layers:
        state[f"{name}.weight"] = state[f"{name}.weight"] + scale * factors.up[name] @ factors.down[name]
    return state


def assert_close(state: State, wanted: State) -> None:
    for name, tensor in wanted.items():
        assert (state[name] - tensor).abs().max() < 1e-6, name


@pytest.mark.parametrize("write", [peft, peft_file, comfy, down_and_up, kohya, adapter_name])
def test_a_lora_is_merged_from_each_form_in_which_it_is_shared(
    write: Write, base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    path = write(tmp_path / "style.safetensors", factors)
    assert_close(loaded(base, LoRAFile(path)), expected(network, factors))
    assert_close(loaded(base, LoRAFile(path, -0.5)), expected(network, factors, -0.5 * ALPHA / RANK))


def test_without_an_alpha_the_scale_is_1(
    base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    # The config beside it is another one's.
    peft(tmp_path / "peft", factors)
    save_file(
        factors.named("diffusion_model.", "lora_A.weight", "lora_B.weight"),
        tmp_path / "peft" / "other.safetensors",
    )
    state = loaded(base, LoRAFile(tmp_path / "peft" / "other.safetensors"))
    assert_close(state, expected(network, factors, 1.0))


def test_a_lora_of_weight_nought_changes_no_bit(
    base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    path = comfy(tmp_path / "style.safetensors", factors)
    state = loaded(base, LoRAFile(path, 0.0), dtype=torch.bfloat16)
    assert all(torch.equal(state[name], tensor.bfloat16()) for name, tensor in network.state_dict().items())
    random = Model.random(TINY, 1, loras=[LoRAFile(path, 0.0)])
    assert random.identity == Model.random(TINY, 1).identity


def test_several_loras_are_added_up_in_fp32_before_anything_is_rounded(
    base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    first, second = comfy(tmp_path / "a.safetensors", factors), kohya(tmp_path / "b.safetensors", factors)
    state = loaded(base, LoRAFile(first, 0.7), LoRAFile(second, -0.2), dtype=torch.bfloat16)
    wanted = expected(network, factors, 0.5 * ALPHA / RANK)
    close = [
        (state[name].float() - tensor).abs() <= tensor.abs() * 2**-8 + 1e-6 for name, tensor in wanted.items()
    ]
    assert all(element.all() for element in close)


def test_what_is_merged_into_random_weights_is_the_same(
    network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    made = Model.random(TINY, 1, loras=[LoRAFile(peft(tmp_path / "p", factors))])
    assert_close(made.transformer.state_dict(), expected(network, factors))


def test_peft_scales_by_rank_or_its_root_and_by_patterns(
    base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    config = {"use_rslora": True, "alpha_pattern": {"self_attn.q": 12.0, r"blocks\.1\.cross_attn\.[kv]": 2.0}}
    state = loaded(base, LoRAFile(peft(tmp_path / "p", factors, **config)))
    alphas = {"blocks.0.self_attn.q": 12.0, "blocks.1.cross_attn.v": 2.0, "blocks.0.cross_attn.v": ALPHA}
    for name, alpha in alphas.items():
        wanted = (
            network.state_dict()[f"{name}.weight"]
            + alpha / math.sqrt(RANK) * factors.up[name] @ factors.down[name]
        )
        torch.testing.assert_close(state[f"{name}.weight"], wanted, atol=1e-6, rtol=0.0)


def test_the_rank_of_a_layer_may_be_its_own(
    base: Path, network: CausalTransformer, factors: Factors, tmp_path: Path
) -> None:
    folder = peft(tmp_path / "p", factors, rank_pattern={"self_attn.k": 2}, alpha_pattern={"self_attn.k": 1})
    state = factors.named("base_model.model.", "lora_A.weight", "lora_B.weight")
    for name in factors.layers:
        if name.endswith("self_attn.k"):
            key = f"base_model.model.{name}.lora_"
            state[f"{key}A.weight"] = state[f"{key}A.weight"][:2].clone()
            state[f"{key}B.weight"] = state[f"{key}B.weight"][:, :2].clone()
    save_file(state, folder / "adapter_model.safetensors")
    merged, name = loaded(base, LoRAFile(folder)), "blocks.1.self_attn.k"
    wanted = network.state_dict()[f"{name}.weight"] + 0.5 * factors.up[name][:, :2] @ factors.down[name][:2]
    torch.testing.assert_close(merged[f"{name}.weight"], wanted, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.99.self_attn.q.lora_A.weight",
        "lora_unet_blocks_0_self_attn_z.lora_down.weight",
        "lora_te_text_model_encoder.lora_up.weight",
        "diffusion_model.blocks.0.self_attn.q.dora_scale",
        "diffusion_model.blocks.0.self_attn.q.diff_b",
        "diffusion_model.blocks.0.self_attn.q.lora_B.bias",
        "diffusion_model.blocks.0.ffn.0.alpha",
        "unet.mid.alpha",
    ],
)
def test_a_key_that_fits_nothing_is_named(base: Path, factors: Factors, tmp_path: Path, key: str) -> None:
    state = factors.named("diffusion_model.", "lora_A.weight", "lora_B.weight")
    save_file({**state, key: torch.ones(RANK, 96)}, tmp_path / "style.safetensors")
    named = key if "ffn" not in key else "blocks.0.ffn.0.alpha"
    with pytest.raises(WeightsError, match=rf"style\.safetensors, .* does not fit .* 1 left over \({named}\)"):
        loaded(base, LoRAFile(tmp_path / "style.safetensors"))


def test_a_layer_that_is_named_in_two_ways_is_named(base: Path, factors: Factors, tmp_path: Path) -> None:
    state = factors.named("diffusion_model.", "lora_A.weight", "lora_B.weight")
    again = factors.named("", "lora_down.weight", "lora_up.weight")
    save_file({**state, **again}, tmp_path / "style.safetensors")
    with pytest.raises(
        WeightsError, match=r"holds blocks\.0\.\S+ twice: as \S+ and as diffusion_model\.blocks\.0\."
    ):
        loaded(base, LoRAFile(tmp_path / "style.safetensors"))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"r": 4}, r"says rank 4 for blocks\.0\.\S+, whose factors have rank 8"),
        ({"rank_pattern": {"cross_attn.o": 16}}, r"says rank 16 for blocks\.0\.cross_attn\.o"),
        ({"use_dora": True}, "is of a DoRA adapter; a plain LoRA can be merged"),
        ({"peft_type": "LOHA"}, "is of a LOHA adapter"),
        ({"lora_alpha": "four"}, "cannot be used: must be real number"),
        ({"lora_alpha": math.nan}, "must be numbers"),
        ({"alpha_pattern": {"(": 1}}, "cannot be used: missing"),
        ({"alpha_pattern": [1]}, "cannot be used"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(
    base: Path, factors: Factors, tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(WeightsError, match=rf"adapter_config\.json .*{problem}"):
        loaded(base, LoRAFile(peft(tmp_path / "p", factors, **config)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["lora_A.weight", "lora_B.weight"])
def test_a_factor_that_is_not_finite_is_refused_by_its_name_in_the_file(
    factors: Factors, tmp_path: Path, value: float, factor: str
) -> None:
    state = factors.named("diffusion_model.", "lora_A.weight", "lora_B.weight")
    key = f"diffusion_model.blocks.0.self_attn.q.{factor}"
    state[key][1, 2] = value
    save_file(state, tmp_path / "style.safetensors")
    with pytest.raises(WeightsError, match=rf"style\.safetensors: {key} has values that are no numbers"):
        require_loras_fit([LoRAFile(tmp_path / "style.safetensors")], TINY.transformer)


def test_what_is_no_lora_is_refused(base: Path, tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match=r"empty\.safetensors is no LoRA"):
        loaded(base, LoRAFile(tmp_path / "empty.safetensors"))
    with pytest.raises(WeightsError, match=r"none\.safetensors cannot be read: No such file"):
        loaded(base, LoRAFile(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match=r"has neither of adapter_model\.safetensors, adapter_model\.bin"):
        loaded(base, LoRAFile(tmp_path))
    with pytest.raises(WeightsError, match=r"base\.pt, a LoRA of rank 0, does not fit .* left over"):
        require_loras_fit([LoRAFile(base)], TINY.transformer)


def test_the_identity_of_a_model_tells_loras_and_weights_apart(factors: Factors, tmp_path: Path) -> None:
    path = comfy(tmp_path / "a.safetensors", factors)
    loras = [[], [LoRAFile(path)], [LoRAFile(path, 0.5)], [LoRAFile(peft(tmp_path / "p", factors))]]
    identities = [Model.random(TINY, 1, loras=files).identity.get("loras") for files in loras]
    assert len(set(identities)) == 4
    (tmp_path / "again").mkdir()
    same = comfy(tmp_path / "again" / "b.safetensors", factors)
    assert Model.random(TINY, 1, loras=[LoRAFile(same)]).identity.get("loras") == identities[1]


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("style.safetensors", LoRAFile(Path("style.safetensors"))),
        ("style.safetensors:0.8", LoRAFile(Path("style.safetensors"), 0.8)),
        ("a:b/style.pt:-1e-1", LoRAFile(Path("a:b/style.pt"), -0.1)),
        ("a:b/style.pt", LoRAFile(Path("a:b/style.pt"))),
    ],
)
def test_a_lora_is_given_as_a_file_and_a_weight(text: str, file: LoRAFile) -> None:
    assert LoRAFile.parse(text) == file


def test_a_file_whose_name_ends_like_a_weight_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "style:2").touch()
    assert LoRAFile.parse(f"{tmp_path}/style:2") == LoRAFile(tmp_path / "style:2")


@pytest.mark.parametrize("text", ["style.pt:nan", "style.pt:inf", ":0.5", ""])
def test_a_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"it must be a number|names no file"):
        LoRAFile.parse(text)
