from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from engines.loading.fingerprint import fingerprint
from engines.wan.layers import pack


def linears() -> list[nn.Linear]:
    """Of the same inputs, with 4, 6 and 5 outputs."""
    torch.manual_seed(3)
    return [nn.Linear(8, outputs) for outputs in (4, 6, 5)]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_packed_layers_are_one_product() -> None:
    layers, x = linears(), torch.randn(2, 3, 8)
    apart = torch.cat([layer(x) for layer in layers], dim=-1)
    torch.testing.assert_close(nn.functional.linear(x, *pack(layers)), apart, atol=1e-6, rtol=0)


def test_packing_stores_no_weight_twice() -> None:
    network = nn.ModuleList(linears())
    before = stored_bytes(network.parameters())
    packed = pack([layer for layer in network if isinstance(layer, nn.Linear)])
    assert stored_bytes([*network.parameters(), *packed]) == before


def test_packed_layers_keep_their_names_and_values() -> None:
    network = nn.ModuleList(linears())
    before, state = fingerprint(network), {name: x.clone() for name, x in network.state_dict().items()}
    parameters = list(network.parameters())
    pack([layer for layer in network if isinstance(layer, nn.Linear)])
    assert fingerprint(network) == before
    assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items())
    assert all(now is then for now, then in zip(network.parameters(), parameters, strict=True))


def test_what_is_loaded_into_a_packed_layer_is_in_the_product() -> None:
    layers, others = linears(), deepcopy(linears()[::-1])
    packed = pack(layers[:1])
    layers[0].load_state_dict({name: 2 * x for name, x in others[2].state_dict().items()})
    assert torch.equal(packed.weight, 2 * others[2].weight)
    assert torch.equal(packed.bias, 2 * others[2].bias)


def test_layers_are_packed_once() -> None:
    layers = linears()
    first, second = pack(layers), pack(layers)
    assert first.weight.data_ptr() == second.weight.data_ptr() == layers[0].weight.data_ptr()
    assert torch.equal(first.bias, second.bias)
    assert second.weight.shape == (15, 8)


def test_a_copy_of_packed_layers_is_packed_in_memory_of_its_own() -> None:
    layers = linears()
    pack(layers)
    copied = deepcopy(layers)
    packed = pack(copied)
    assert packed.weight.data_ptr() == copied[0].weight.data_ptr() != layers[0].weight.data_ptr()
