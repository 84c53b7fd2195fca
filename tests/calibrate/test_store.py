"""Stores give back what was put in, bit for bit, from memory and from files, and leave nothing behind."""

from __future__ import annotations

import errno
import threading

import pytest
import torch
from tests.tiny import images, tiny

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.moving import advance_rows
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import nearest
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowsWriter, as_rows
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import capture
from clcalib.capture.running import advance
from clcalib.errors import ArgumentError
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import QParams, QuantSpec

SHAPES = [(3, 5, 7), (4, 2, 2), (9,), (5, 3), (1,)]
CHANNELS_LAST = torch.channels_last


def quantizer(bits, is_signed, scale=0.037):
    zero_point = 0.0 if is_signed else float(2**bits // 3)
    return ActivationQuantizer(
        QParams(torch.tensor([scale]), torch.tensor([zero_point])), QuantSpec(bits, is_signed=is_signed)
    )


def written(space, values, grid=None, batch=4, **options):
    writer = RowsWriter(space, len(values), grid, **options)
    for part in values.split(batch):
        writer.append(part)
    return writer.finish()


def is_same(first, second):
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_come_back_bit_for_bit(bits, is_signed, shape, budget):
    module = quantizer(bits, is_signed)
    values = module(torch.randn(11, *shape))
    with StoreSpace(budget) as space:
        rows = written(space, values, CodeGrid.of(module))
        elements = values[0].numel()
        assert rows.grid is not None
        assert rows.nbytes == 11 * (elements if bits > 4 else (elements + 1) // 2)
        index = torch.tensor([7, 0, 10, 7])
        assert is_same(rows.take(index), values[index])
        assert is_same(rows.slice(8, 64), values[8:])
        assert is_same(rows.first(5), values[:5])
        assert (len(rows), rows.shape) == (11, shape)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_come_back_bit_for_bit(shape, budget):
    values = torch.randn(11, *shape)
    values[3] = -0.0
    with StoreSpace(budget) as space:
        rows = written(space, values)
        assert (rows.storage is None) == (budget is not None)
        assert is_same(rows.take(torch.arange(10, -1, -1)), values.flip(0))
        assert is_same(rows.slice(2, 9), values[2:9])


@pytest.mark.parametrize("grid", [None, CodeGrid.of(quantizer(8, False)), CodeGrid.of(quantizer(4, False))])
@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 6, 6)])
def test_four_dimensional_values_are_channels_last(shape, grid):
    values = quantizer(4, False)(torch.randn(6, *shape))
    rows = written(StoreSpace(), values, grid)
    order = values.permute(0, 2, 3, 1).flatten(1)
    if grid is None:
        assert torch.equal(rows.storage, order)
    assert rows.take(torch.tensor([4, 1])).stride()[1] == 1
    if grid is None or values[0].numel() % 2 == 0:
        assert rows.take(torch.tensor([4, 1])).is_contiguous(memory_format=CHANNELS_LAST)


def test_what_is_stored_is_as_it_is_documented():
    """A reader of the raw bytes gets the values: u + offset is the code, the low nibble comes first."""
    module = quantizer(3, True)
    values = module(torch.randn(5, 2, 3, 3))
    rows = written(StoreSpace(), values, CodeGrid.of(module))
    grid = rows.grid
    assert (grid.bits_stored, grid.offset, rows.storage.dtype) == (4, -4, torch.uint8)
    assert rows.storage.is_contiguous()
    low, high = rows.storage & 15, rows.storage >> 4
    codes = torch.stack((low, high), 2).flatten(1).float() + grid.offset
    expected = ((codes - grid.zero_point) * grid.scale).view(5, 3, 3, 2).permute(0, 3, 1, 2)
    assert is_same(expected, values)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("bad", [-0.0, 0.01, float("nan"), 1e30])
def test_a_value_off_the_grid_makes_the_store_one_of_floats(bad, budget):
    module = quantizer(4, False)
    values = module(torch.randn(150, 2, 3, 3))
    values[140, 1, 2, 0] = bad
    with StoreSpace(budget) as space:
        rows = written(space, values, CodeGrid.of(module))
        assert rows.grid is None
        assert is_same(rows.first(150), values)


def test_a_smaller_float_type_rounds():
    values = torch.randn(4, 3, 2, 2)
    rows = written(StoreSpace(), values, float_dtype=torch.bfloat16)
    assert rows.nbytes == values.numel() * 2
    assert rows.take(torch.arange(4)).dtype == torch.float32
    assert torch.equal(rows.first(4), values.bfloat16().float())


def test_other_types_are_kept():
    values = torch.arange(12).view(4, 3)
    assert torch.equal(written(StoreSpace(1), values).take(torch.tensor([2])), values[2:3])


def test_a_tensor_becomes_rows_without_a_copy():
    own = images(6)
    rows = as_rows(own)
    assert rows.storage.data_ptr() == own.data_ptr()
    assert torch.equal(rows.take(torch.tensor([5, 2])), own[[5, 2]])


def test_the_budget_bounds_what_is_in_memory():
    space = StoreSpace(budget=100)
    first, second = (space.allocate((5, 10), torch.uint8) for _ in range(2))
    third = space.allocate((5, 10), torch.uint8)
    assert [block.storage is None for block in (first, second, third)] == [False, False, True]
    assert space.used == 100
    del first
    assert space.used == 50
    space.close()


def test_a_prefetched_row_is_the_same_and_a_wrong_guess_does_no_harm():
    values = torch.randn(20, 3, 4, 4)
    with StoreSpace(budget=1) as space:
        rows = written(space, values)
        index, other = torch.tensor([3, 17, 3]), torch.tensor([1, 2])
        rows.prefetch(index)
        assert torch.equal(rows.take(index), values[index])
        rows.prefetch(index)
        assert torch.equal(rows.take(other), values[other])
        rows.prefetch(other)
        rows.prefetch(index)
        assert torch.equal(rows.take(index), values[index])
        rows.prefetch(index)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clcalib-prefetch")]
    assert rows.block._file.closed


def test_the_next_step_can_be_known_ahead():
    random = StepStream(0, 2, 1)
    random.advance(2)
    ahead = random.batch(50, 50, ahead=1).tolist()
    random.advance(3)
    assert random.batch(50, 50).tolist() == ahead


def test_a_full_disk_is_told(monkeypatch):
    with StoreSpace(budget=1) as space:
        block = space.allocate((4, 4), torch.float32)

        class Full:
            def seek(self, place): ...

            def close(self): ...

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(block, "_file", Full())
        with pytest.raises(ArgumentError, match=r"spill_folder: .*No space left on device; name a folder"):
            block.write(0, torch.zeros(4, 4))


@pytest.mark.parametrize("budget", [None, 1, 40_000])
def test_a_unit_with_two_live_tensors_moves_as_it_computes(budget):
    chain = capture(tiny(), images(2), unit="layer")
    quantized = insert_quantizers(chain, build_policy(chain.layers, Bits(2, 3)), RANGE_RULES["minmax"])
    with StoreSpace(budget) as space:
        walk = Walk(chain, quantized, nearest(), RANGE_RULES["minmax"], {}, 0, SilentObserver(), space)
        list(walk.run(images(150), None))
        rows, state = (as_rows(images(150)),), (images(150),)
        widths, kinds = [], []
        for index in range(len(chain.units)):
            body = quantized.chain.body(index)
            rows, state = advance_rows(body, rows, space), advance(body, state)
            widths.append(len(rows))
            kinds += [one.grid is not None for one in rows]
            for one, tensor in zip(rows, state, strict=True):
                torch.testing.assert_close(one.first(150), tensor)
        assert max(widths) == 2
        assert kinds[0]
        assert not kinds[-1]
        del rows, one
        assert space.used == 0
