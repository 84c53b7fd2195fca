"""Widths within a budget under a target's rules: which may be chosen, what each costs, what the file computes."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.caches import round_alone
from clcalib.data.calibration import EvaluationSet
from clcalib.deployment import deploy
from clcalib.errors import ArgumentError, EqualCostWarning
from clcalib.evaluate.sensitivity import sensitivities
from clcalib.quant.cost import bit_operations_at_8_bits
from clcalib.quant.insert import Unquantized, chain_policy, insert_quantizers
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.reads import find_reads
from clcalib.quant.targets import TARGETS
from clcalib.width_plan import plan_widths
from tests.processors import here
from tests.tiny import images, tiny

NEAREST, RULE = clcalib.recipes.nearest(), RANGE_RULES["mse_grid"]


class Shuffle(nn.Module):
    """Half of the channels pass by; then all are shuffled, which moves codes at the end of a unit."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        passing, own = x.chunk(2, dim=1)
        y = torch.cat([passing, F.relu(self.two(F.relu(self.one(own))))], dim=1)
        n, _, h, w = y.shape
        return y.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), Shuffle(), Shuffle()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.second(self.first(F.relu(self.stem(x)))).mean((2, 3)))


class Forked(nn.Module):
    """One layer reads a tensor, another one what a pool by maximum makes of it."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 4)
        self.plain, self.pooled = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc((self.plain(x) + self.pooled(F.max_pool2d(x, 3, 1, 1))).mean((2, 3)))


def made(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        model.fc.weight *= 20  # classes that differ
    return model


def calibration(count=64):
    return clcalib.CalibrationSet.from_tensor(images(count))


def choose(model, target, *, bits=None, **options):
    settings = {"recipe": NEAREST, "bits": bits or clcalib.Bits(4, 8), "is_rehearsed": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EqualCostWarning)
        return clcalib.choose_widths(model, calibration(), target=target, **settings)


def costs(model, target, record, pairs):
    """(unit's name, "W3A4") -> bit operations."""
    chain = clcalib.capture(model, images(2), unit=NEAREST.unit)
    plan = plan_widths(chain, pairs, "qdrop", None, 8, target=TARGETS[target])
    names = [(group.name, str(pairs[number])) for group in plan.groups for number in group.pairs]
    assert {unit.name for unit in record.units} == {name for name, _ in names}
    values = dict(zip(names, (cost for group in plan.groups for cost in group.costs), strict=True))
    return values, bit_operations_at_8_bits(chain)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino-avx2"])
def test_both_widths_are_chosen_within_a_cost_and_are_those_of_the_run(target):
    model, pairs = made(Shuffled), [clcalib.Bits(w, a) for a in (2, 4, 8) for w in (2, 8)]
    budget = clcalib.Budget(cost=0.52, images=32, weights=(2, 8), activations=(2, 4, 8))
    choice = choose(model, target, budget=budget)
    found, (used, full) = choice.record, costs(model, target, choice.record, pairs)
    sums = []
    for pick in itertools.product(*(unit.sensitivities for unit in found.units)):
        if sum(used[unit.name, widths] for unit, widths in zip(found.units, pick, strict=True)) <= 0.52 * full:
            sums.append(sum(unit.sensitivities[widths] for unit, widths in zip(found.units, pick, strict=True)))
    assert found.is_optimal
    assert found.sensitivity == pytest.approx(min(sums), rel=1e-9)
    assert found.cost <= 0.52
    free = [unit for unit in found.units if unit.widths is not None]
    assert {unit.widths[2:] for unit in free} != {"A8"}  # 8 bits of activations everywhere take more, or hurt more
    result = clcalib.quantize(
        model, calibration(), recipe=NEAREST, bits=choice.bits, overrides=choice.overrides, target=target,
        measured_images=0, is_rehearsed=False,
    )  # fmt: skip
    rows = {row.layer: row for row in result.policy}
    for unit in free:
        weights, activations = unit.widths[1:].split("A")
        reduced = 7 if target.endswith("avx2") and weights == "8" else int(weights)
        assert {(rows[name].weight.bits, rows[name].input.bits) for name in unit.layers} == {
            (reduced, int(activations))
        }


def test_a_unit_is_charged_for_what_it_reads_behind_a_cut_and_not_for_what_it_makes():
    """The quantizer of what ``second`` reads stands in front of the shuffle, which is part of ``first``."""
    model, own = made(Shuffled), TARGETS["onnxruntime"]
    budget = clcalib.Budget(cost=1, images=32, weights=(), activations=(2, 8))
    found = choose(model, "onnxruntime", budget=budget, bits=clcalib.Bits(8, 8)).record
    chain = clcalib.capture(model, images(2))
    numbers = {unit.name: index for index, unit in enumerate(chain.units)}
    (read,) = [read for read in find_reads(chain.module, own.placement) if read.name == "second.one"]
    assert read.tensor.name in chain.units[numbers["first"]].nodes
    assert read.tensor.name not in chain.units[numbers["second"]].inputs
    quantized = insert_quantizers(chain, chain_policy(chain, clcalib.Bits(8, 2), target=own), RULE, own.placement)
    round_alone(chain, quantized, images(64), RULE)
    between, shown = quantized.activation("second.one"), images(32)
    truth = chain.module(shown).log_softmax(1)

    def divergence(index, state):
        outputs = chain.suffix(index)(*state)[0].log_softmax(1)
        return float(F.kl_div(outputs, truth, reduction="batchmean", log_target=True))

    def by_hand(name, prepare=lambda x: x):
        index, unit = numbers[name], chain.units[numbers[name]]
        piece = quantized.chain.subgraph(unit.inputs, unit.outputs)
        return divergence(index, piece(*(prepare(x) for x in chain.prefix(index)(shown))))

    with torch.no_grad():
        quantized.replace(quantized.activations["second:cat1"], Unquantized(between.spec))  # what ``second`` makes
        reading = by_hand("second", between)
        without = by_hand("second")
        quantized.replace(quantized.activations["second.one"], Unquantized(between.spec))
        making = by_hand("first")
    values = {unit.name: unit.sensitivities for unit in found.units}
    assert values["second"]["W8A2"] == pytest.approx(reading, rel=1e-5)
    assert reading > 1.1 * without
    assert values["first"]["W8A2"] == pytest.approx(making, rel=1e-5)


@pytest.mark.parametrize(("target", "ties"), [("onnxruntime", [{"plain", "pooled"}]), ("paper", [])])
def test_readers_of_one_quantizer_get_one_width_also_where_codes_move_in_between(target, ties):
    chain = clcalib.capture(made(Forked), images(2), unit="layer")
    pairs = [clcalib.Bits(4, activations) for activations in (2, 4)]
    plan = plan_widths(chain, pairs, "qdrop", None, 8, target=TARGETS[target])
    assert [{plan.groups[group].layers[0] for group in link.groups} for link in plan.links] == ties
    budget = clcalib.Budget(cost=0.75, images=16, weights=(2, 8), activations=(2, 4, 8), per="layer")
    found = choose(made(Forked), target, budget=budget).record
    widths = {unit.layers[0]: unit.widths for unit in found.units}
    if ties:
        assert widths["plain"][2:] == widths["pooled"][2:]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_file_computes_what_was_chosen(target, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip(target)
    budget = clcalib.Budget(cost=0.55, images=32, weights=(2, 4, 8), activations=(3, 4, 8), per="layer")
    with pytest.warns(EqualCostWarning, match="codes of all widths in 8 bits"):
        result = clcalib.quantize_to_budget(
            made(Shuffled), calibration(), budget=budget, recipe=NEAREST, bits=clcalib.Bits(8, 8), target=here(target)
        )
    assert sum("in 8 bits, so fewer bit operations" in text for text in result.record.warnings) == 1
    chosen = {unit.widths for unit in result.record.budget.units if unit.widths is not None}
    assert len({widths[2:] for widths in chosen}) > 1  # activations of several widths
    proof = deploy(result, tmp_path / "model.onnx", EvaluationSet.from_tensor(images(32))).record.deployment
    assert proof.max_code_difference <= 1
    assert proof.agreement == 1
    assert (proof.integer_layers, proof.float_layers) == (6, 0)


@pytest.mark.parametrize(
    ("target", "budget", "message"),
    [
        (
            "torch",
            {"activations": (4, 8)},
            "budget.activations: expected widths that target torch has, 8 bits, got 4, 8; leave 4 out, or take another "
            "target: paper, onnxruntime, onnxruntime-avx2, openvino, openvino-avx2$",
        ),
        (
            "tensorrt",
            {},
            "budget.weights: expected widths that target tensorrt has, 8 bits, got 2, 3, 4, 6, 8; leave 2, 3",
        ),
        (
            "executorch",
            {"activations": (2,)},
            "budget.activations: expected .* executorch has, 8 bits, got 2; leave 2 out",
        ),
    ],
)
def test_candidates_that_a_target_has_not_are_refused_before_anything_is_measured(target, budget, message, monkeypatch):
    monkeypatch.setattr("clcalib.mixed_precision.search_widths", None)
    with pytest.raises(ArgumentError, match=message):
        choose(tiny(), target, budget=clcalib.Budget(cost=1, **budget))


def test_a_width_that_is_not_chosen_is_refused_as_in_any_run():
    with pytest.raises(
        ArgumentError, match=r"bits \(activations\): expected 8 bits, or float, for target torch, got 4"
    ):
        choose(tiny(), "torch", budget=clcalib.Budget(size="1MB"), bits=clcalib.Bits(4, 4))


@pytest.mark.parametrize(
    ("target", "budget", "is_told"),
    [("openvino", {"cost": 1}, True), ("openvino", {"size": "1MB"}, False), ("paper", {"cost": 1}, False)],
)
def test_that_fewer_bit_operations_save_no_time_is_told_where_it_is_so(target, budget, is_told):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clcalib.choose_widths(
            tiny(), calibration(), recipe=NEAREST, bits=clcalib.Bits(4, 8), target=target, is_rehearsed=False,
            budget=clcalib.Budget(images=8, weights=(4, 8), **budget),
        )  # fmt: skip
    assert [issubclass(each.category, EqualCostWarning) for each in told] == [True] * is_told


@pytest.mark.parametrize("target", ["onnxruntime", "executorch"])
def test_sensitivities_are_those_with_the_signs_and_the_quantizers_of_the_target(target):
    """The last unit's, by hand: its weights and all that it reads rounded as the target's kernels do."""
    model = tiny()
    budget = clcalib.Budget(size="1MB", images=32, weights=(4, 8))
    found = choose(model, target, budget=budget, first_last_bits="same").record
    without = choose(model, None, budget=budget, first_last_bits="same").record
    for unit, other in zip(found.units, without.units, strict=True):
        assert unit.bytes == other.bytes
    chain = clcalib.capture(model, images(2))
    own, rule = TARGETS[target], RANGE_RULES["mse_grid"]
    policy = chain_policy(chain, clcalib.Bits(4, 8), first_last_bits="same", target=own)
    wide = chain_policy(chain, clcalib.Bits(8, 8), first_last_bits="same", target=own)
    for rows, is_symmetric in ((policy, False), (wide, True)):  # kernels see no zero points of fewer than 8 bits
        assert {row.weight.is_symmetric for row in rows if row.weight is not None} == {is_symmetric}
    quantized = insert_quantizers(chain, policy, rule, own.placement)
    round_alone(chain, quantized, images(64), rule)
    by_hand = sensitivities(chain, quantized.chain, images(32))
    for unit in found.units:
        assert unit.sensitivities["W4A8"] == pytest.approx(by_hand[unit.name].divergence, rel=1e-9)
    assert [unit.sensitivities for unit in found.units] != [unit.sensitivities for unit in without.units]
