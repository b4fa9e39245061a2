"""Packed linear layers: the same products, few kernels, and a way back."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from tests.tiny_models import fast_tokenizer, tiny_model
from workers.engine import packed
from workers.engine.budget import Budget
from workers.engine.continuous import assemble
from workers.engine.loading import describe
from workers.engine.packed import PackedLinear, pack, padded, unpack


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_WORTH_IT", 0)


def two_layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 32, bias=False)).to(dtype).eval()


def packed_layers(model: nn.Module) -> int:
    return sum(isinstance(layer, PackedLinear) for layer in model.modules())


needs_onednn = pytest.mark.skipif(
    not packed._is_of_use(two_layers()), reason="this machine has no oneDNN for linear layers"
)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 33, 100, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_give_the_same_products(rows: int, dtype: torch.dtype) -> None:
    model = two_layers(dtype)
    given = torch.randn(rows, 48).to(dtype)
    with torch.inference_mode():
        expected = model(given)
        assert pack(model) == 2
        found = model(given)
    torch.testing.assert_close(
        found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
    )


@needs_onednn
def test_unpacking_gives_the_weights_back_bit_by_bit() -> None:
    model = two_layers()
    before = copy.deepcopy(model.state_dict())
    pack(model)
    unpack(model)
    assert packed_layers(model) == 0
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_products_are_computed_for_few_numbers_of_rows() -> None:
    sizes = {padded(rows) for rows in range(1, 513)}
    assert len(sizes) <= 40  # half a megabyte each, for every shape of a weight
    assert all(rows <= padded(rows) <= max(rows + 3, rows * 1.25) for rows in range(1, 513))


@needs_onednn
def test_what_is_no_plain_layer_stays() -> None:
    class Quantised(nn.Linear):
        """Stands for what a library makes of a layer."""

    model = nn.Sequential(Quantised(32, 32), nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50))
    model[3].weight = model[1].weight  # it would lie in memory twice
    assert pack(model) == 1
    assert type(model[0]) is Quantised
    assert model[3].weight is model[1].weight


@needs_onednn
def test_old_weights_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    layers = [weakref.ref(layer) for layer in model]
    alive: list[int] = []
    make = packed._pack

    def count(weight: torch.Tensor) -> torch.Tensor:
        alive.append(sum(layer() is not None for layer in layers))
        return make(weight)

    monkeypatch.setattr(packed, "_pack", count)
    assert packed._replace(model, packed._is_plain, PackedLinear) == 4
    assert alive == [4, 3, 2, 1]


@needs_onednn
def test_small_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_WORTH_IT", 48 * 80)
    assert pack(two_layers()) == 1


@needs_onednn
def test_a_batched_model_is_packed_and_a_serial_one_is_not() -> None:
    for family, wanted in (("llama", True), ("gemma2", False)):
        model = copy.deepcopy(tiny_model(family))
        assemble(describe(model, fast_tokenizer()), Budget(4, 1024, 128, 16))
        assert (packed_layers(model) > 0) is wanted


def test_a_machine_whose_products_come_out_wrong_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_pack", lambda weight: torch.zeros_like(weight).to_mkldnn())
    model = two_layers()
    assert pack(model) == 0
    assert packed_layers(model) == 0
