"""Widths within a budget: what is chosen is the best of all choices, what is settled stays, what cannot be is told."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.capture.graph import weighted_nodes
from clcalib.errors import ArgumentError
from clcalib.evaluate.accuracy import logits
from clcalib.quant.insert import chain_policy
from clcalib.report.record import read_record
from clcalib.width_plan import laid_under, plan_widths
from tests.capture.networks import Transformer
from tests.tiny import Block, images, tiny

NEAREST = clcalib.recipes.nearest()


class Blocks(nn.Module):
    """A stem, three residual blocks of different width, and a classifier, on random weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second, self.third = Block(4), Block(8), Block(12)
        self.wide, self.wider = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.second(self.wide(self.first(F.relu(self.stem(x)))))
        return self.fc(self.third(self.wider(x)).mean((2, 3)))


class Shared(nn.Module):
    """Two units that read one tensor, far apart, and two that have one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again, self.fc = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        first = F.relu(self.again(F.relu(self.one(x))))
        return self.fc(F.relu(self.again(F.relu(first + self.two(x)))))


def network():
    torch.manual_seed(0)
    return Blocks().eval()


def calibration(count=64):
    return clcalib.CalibrationSet.from_tensor(images(count))


def choose(model=None, shown=None, **options):
    settings = {"recipe": NEAREST, "bits": clcalib.Bits(4, 8), **options}
    return clcalib.choose_widths(model or network(), shown or calibration(), **settings)


def best_sum(record, budget, key):
    """The least sum over all choices of one candidate each, by trying every one of them."""
    sums = []
    for pick in itertools.product(*(unit.sensitivities for unit in record.units)):
        if sum(key(unit, widths) for unit, widths in zip(record.units, pick, strict=True)) <= budget:
            sums.append(sum(unit.sensitivities[widths] for unit, widths in zip(record.units, pick, strict=True)))
    return min(sums)


def bytes_at(model):
    """(unit of the record, "W3A8") -> bytes, from the layers' own tables."""
    chain = clcalib.capture(model, images(2))
    shapes = {layer: node.args[1].meta["val"].shape for layer, node in weighted_nodes(chain.module)}

    def size(unit, widths):
        bits = {layer: 8 if layer in ("stem", "fc") else int(widths[1]) for layer in unit.layers}
        return sum(-(-shapes[layer].numel() * bits[layer] // 8) + 8 * shapes[layer][0] for layer in unit.layers)

    return size


def test_the_choice_is_the_best_of_all_within_the_bytes():
    model = network()
    size = bytes_at(model)
    found = choose(model, budget=clcalib.Budget(size=2_400, images=16, weights=(2, 3, 4, 8))).record
    assert found.is_optimal
    assert found.size <= 2_400
    assert found.size == sum(size(unit, unit.widths or next(iter(unit.sensitivities))) for unit in found.units)
    assert found.sensitivity == pytest.approx(best_sum(found, 2_400, size), rel=1e-9)


def test_a_larger_budget_never_hurts_more():
    sums = [choose(budget=clcalib.Budget(cost=share, images=16, weights=(2, 4))).record for share in (0.35, 0.45)]
    assert [row.sensitivity for row in sums] == sorted((row.sensitivity for row in sums), reverse=True)
    assert all(row.cost <= row.cost_budget for row in sums)


def test_both_budgets_are_kept_and_layers_may_be_chosen_one_by_one():
    by_unit = choose(budget=clcalib.Budget(size=2_600, cost=0.45, images=32, weights=(2, 4))).record
    by_layer = choose(
        budget=clcalib.Budget(size=2_600, cost=0.45, images=32, weights=(2, 4), per="layer", measure="changed")
    ).record
    for found in (by_unit, by_layer):
        assert found.size <= 2_600
        assert found.cost <= 0.45
    assert len(by_layer.units) == 10 > len(by_unit.units)
    assert all(len(unit.layers) == 1 for unit in by_layer.units)
    shares = [value * 32 for unit in by_layer.units for value in unit.sensitivities.values()]
    assert shares == [round(share) for share in shares]


def test_the_run_has_the_widths_and_the_record_is_kept(tmp_path):
    result = clcalib.quantize_to_budget(
        network(),
        calibration(),
        budget=clcalib.Budget(size="2600 B", images=32),
        recipe=clcalib.recipes.fast(steps=4),
        bits=clcalib.Bits(8, 8),
        overrides={"wide": "W5", "first.conv1": "A4"},
        measured_images=0,
    )
    found = result.record.budget
    rows = {row.layer: row for row in result.policy}
    for unit in found.units:
        for layer in unit.layers:
            settled = {"stem": 8, "fc": 8, "wide": 5}.get(layer, unit.widths and int(unit.widths[1]))
            assert rows[layer].weight.bits == settled
    assert (rows["wide"].input.bits, rows["first.conv1"].input.bits) == (8, 4)
    assert rows["second.conv1"].reason == "chosen within the budget"
    assert rows["first.conv1"].reason == "override first.conv1"
    assert result.record.seconds_per_stage["widths"] > 0
    result.save(tmp_path)
    assert read_record(tmp_path / "run.json").budget == found
    saved = load_file(tmp_path / "model.safetensors")
    counted = [saved[n].nbytes for n in saved if n.startswith(("codes/", "weight_scale/", "weight_zero_point/"))]
    assert sum(counted) == found.size <= 2_600
    weights = [result.quantized.weight(layer) for layer in result.quantized.weights]
    total = sum(weight.codes.numel() for weight in weights)
    assert found.mean_weight_bits == sum(weight.codes.numel() * weight.spec.bits for weight in weights) / total


def test_mixed_widths_are_better_than_uniform_ones_of_the_same_size():
    model, shown = network(), images(256, seed=5)
    with torch.no_grad():  # one block with weights that few bits cannot tell apart
        model.second.conv1.weight[:, :, 0, 0] *= 40
        truth = logits(model, shown).log_softmax(1)

    def divergence(result):
        return float(
            F.kl_div(logits(result.model, shown).log_softmax(1), truth, log_target=True, reduction="batchmean")
        )

    options = {"recipe": NEAREST, "measured_images": 0}
    uniform = clcalib.quantize(model, calibration(), bits=clcalib.Bits(3, 8), **options)
    same = clcalib.capture(model, images(2))
    size = sum(clcalib.quant.cost.layer_bytes(same, uniform.policy).values())
    mixed = clcalib.quantize_to_budget(
        model, calibration(), budget=clcalib.Budget(size=size), bits=clcalib.Bits(3, 8), **options
    )
    assert mixed.record.budget.size <= size
    assert divergence(mixed) < divergence(uniform)


def plan(model, shown, pairs, **options):
    chain = clcalib.capture(model, shown[:2], unit="layer")
    settings = {"setting": "qdrop", "overrides": None, "first_last_bits": 8, **options}
    return chain, plan_widths(chain, pairs, **settings)


def test_units_with_one_weight_are_one_choice_and_readers_of_one_tensor_are_linked():
    shown = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Shared().eval()
    pairs = [clcalib.Bits(w, a) for a in (2, 4, 8) for w in (2, 4)]
    chain, found = plan(model, shown, pairs)
    names = [group.layers for group in found.groups]
    assert ("again",) in names
    (again,) = [group for group in found.groups if group.layers == ("again",)]
    assert len(again.units) == 2
    ties = {frozenset(found.groups[g].layers[0] for g in link.groups) for link in found.links}
    assert ties == {frozenset({"one", "two"})}
    record = choose(
        model,
        clcalib.CalibrationSet.from_tensor(shown),
        budget=clcalib.Budget(cost=0.4, weights=(2, 4), activations=(2, 4, 8), per="layer"),
    ).record
    widths = {unit.layers[0]: unit.widths for unit in record.units if unit.layers}
    assert widths["one"][2:] == widths["two"][2:]
    del chain


@pytest.mark.parametrize("overrides", [None, {"two": "A3"}, {"one": "float"}, {"again": "W8", "@linear": "A4"}])
def test_the_overrides_of_a_choice_give_the_rows_that_were_measured(overrides):
    shown = torch.randn(8, 6)
    torch.manual_seed(0)
    pairs = [clcalib.Bits(w, a) for a in (2, 3, 4) for w in (2, 4)]
    chain, found = plan(Shared().eval(), shown, pairs, overrides=overrides)
    chosen = [group.pairs[-1 if "again" in group.layers else 0] for group in found.groups]
    given = laid_under(found.overrides(chosen), overrides)
    rows = chain_policy(chain, clcalib.Bits(8, 8), overrides=given)
    measured = found.policy(chosen)
    assert [(r.layer, r.weight, r.input) for r in rows] == [(r.layer, r.weight, r.input) for r in measured]


def test_a_tensor_that_a_pattern_widens_ties_no_more_than_it_must():
    """With one reader at 3 bits, 2 and 3 are the same for it, and the other reader may still take either."""
    chain, found = plan(
        Shared().eval(), torch.randn(4, 6), [clcalib.Bits(4, a) for a in (2, 3, 4)], overrides={"two": "A3"}
    )
    (link,) = found.links
    labels = {found.groups[g].layers[0]: own for g, own in zip(link.groups, link.labels, strict=True)}
    assert labels == {"one": (3, 4), "two": (3, 4)}
    del chain


def test_products_of_activations_have_the_width_of_their_unit():
    torch.manual_seed(0)
    shown = clcalib.CalibrationSet.from_tensor(torch.randn(32, 3, 16, 16))
    choice = choose(
        Transformer().eval(), shown, budget=clcalib.Budget(cost=0.5, weights=(), activations=(2, 4, 8), images=16)
    )
    products = {name: own for name, own in choice.overrides.items() if "matmul" in name}
    assert len(products) == 4
    assert all(own.weights == "default" and own.activations in (2, 4, 8) for own in products.values())
    assert {unit.widths[:2] for unit in choice.record.units if unit.widths} == {"W4"}


def test_progress_is_told():
    told = []

    class Listener(SilentObserver):
        def stage(self, name):
            told.append(name)

        def unit_started(self, index, count, name, kind, steps):
            told.append((index, count, name))

    choose(budget=clcalib.Budget(size=10**6, weights=(2, 4), images=8), observer=Listener())
    assert told[:2] == ["widths", "sensitivities at W2A8, 1 of 2"]
    assert told[2] == (0, 7, "stem")
    assert "sensitivities at W4A8, 2 of 2" in told
    assert told.count((0, 7, "stem")) == 1  # nothing is to be chosen there
    assert told.count((1, 7, "first")) == 2


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"size": 1_000}, "size budget: expected at least 1,8.* bytes, which is what the smallest candidates .* take"),
        ({"cost": 0.01}, r"cost budget: expected at least 0\.\d+ of the bit operations with 8 bits everywhere"),
    ],
)
def test_what_no_widths_keep_is_told_before_anything_is_measured(budget, message, monkeypatch):
    monkeypatch.setattr("clcalib.width_search.measure_widths", None)
    with pytest.raises(ArgumentError, match=message):
        choose(budget=clcalib.Budget(**budget))


def test_the_smallest_budget_that_is_told_can_be_kept():
    with pytest.raises(ArgumentError) as told:
        choose(budget=clcalib.Budget(cost=0.001))
    smallest = float(str(told.value).partition("at least ")[2].split()[0])
    found = choose(budget=clcalib.Budget(cost=smallest, images=8, weights=(2, 3))).record
    assert found.cost == found.smallest_cost <= smallest
    exact = choose(budget=clcalib.Budget(size=found.smallest_size, images=8, weights=(2, 3))).record
    assert exact.size == found.smallest_size


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "budget: expected a size or a cost"),
        ({"size": "many"}, "size: expected a number of bytes"),
        ({"cost": 0}, "cost: expected a share above 0"),
        ({"cost": True}, "cost: expected a share above 0"),
        ({"cost": 1, "weights": (1, 4)}, "weights: expected whole numbers of bits from 2 to 8"),
        ({"cost": 1, "weights": ()}, "weights, activations: expected candidate widths"),
        ({"size": 1, "activations": (4, 8)}, r"activations: expected no candidates where only the size counts.*a cost"),
        ({"cost": 1, "per": "channel"}, "per: expected one of unit, layer"),
        ({"cost": 1, "measure": "loss"}, "measure: expected one of divergence, changed"),
        ({"cost": 1, "images": 0}, "images: expected a whole number"),
    ],
)
def test_a_budget_that_is_none_is_refused(settings, name):
    with pytest.raises(ArgumentError, match=name):
        clcalib.Budget(**settings)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ArgumentError, match="submodule: expected the whole model where widths are chosen"):
        choose(budget=clcalib.Budget(cost=1.0), submodule="first")
    with pytest.raises(ArgumentError, match="budget: expected a Budget, got int"):
        choose(budget=200_000)
    with pytest.raises(ArgumentError, match="bits: expected a Bits, got str"):
        choose(budget=clcalib.Budget(cost=1.0), bits="W4A4")
    maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(ArgumentError, match=r"model: expected an output \(N, classes\).*, got an output of 4 dim"):
        choose(maps, budget=clcalib.Budget(cost=1.0))


def test_where_all_is_settled_there_is_nothing_to_choose():
    settled = {"*": "W4A4", "@linear": "float"}
    found = choose(overrides=settled, budget=clcalib.Budget(size=10**6, weights=(2, 8), images=8))
    assert found.overrides == settled
    assert {unit.widths for unit in found.record.units} == {None}
    assert found.record.size == found.record.smallest_size
    assert found.record.is_optimal


def test_the_callers_random_state_and_model_stay():
    model = tiny()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    choose(model, budget=clcalib.Budget(cost=1.0, weights=(2, 8), images=8), is_layer_norm_reparameterized=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
