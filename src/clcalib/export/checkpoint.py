"""A quantized network on disk: integers and scales as safetensors, everything else as JSON.  Nothing is ever unpickled.

``model.safetensors`` holds, for every quantized layer, its codes packed to their width, and all float parameters that
are left; ``model.json`` holds shapes, widths, the policy and the digest of the first file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from clcalib.capture.blocks import UnitKind
from clcalib.capture.chain import Chain, capture
from clcalib.capture.graph import weight_path
from clcalib.capture.outputs import whole
from clcalib.capture.placing import home_of, move
from clcalib.capture.submodule import InputForm, Part
from clcalib.errors import (
    ArgumentError,
    CheckpointError,
    ClcalibWarning,
    NumericalError,
    TrainModeWarning,
    misfits,
)
from clcalib.export.checkpoint_description import FORMAT, Description, read_description
from clcalib.export.checkpoint_tensors import policy_problems, tensor_problems
from clcalib.files import write_atomically
from clcalib.quant.biases import bias_of, further_biases, separate_biases
from clcalib.quant.grids import range_shape
from clcalib.quant.insert import QuantizedChain, insert_quantizers
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.packing import pack, unpack
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import PerChannel, QParams, QuantSpec
from clcalib.quant.targets import Target, target_of
from clcalib.reading.content import read_bytes
from clcalib.reading.state_dict import MOST_BYTES, parse_tensors

Shape = tuple[int, ...]

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How the chain came from its model, so that loading can go the same way.

    Attributes:
        unit: the kind of units.
        patterns: globs of modules that were made units.
        input_shape: of one image, or of one row of a submodule's inputs, without the batch.
        submodule: the path of the part that was captured; None for the whole model.
        form: what that part takes.
        input_dtype: "float32", or "int64" for tokens.
        target: the name of the target whose kernels decided where quantizers stand, or None.
    """

    unit: UnitKind
    patterns: tuple[str, ...]
    input_shape: tuple[int, ...]
    submodule: str | None = None
    form: InputForm | None = None
    input_dtype: str = "float32"
    target: str | None = None

    @property
    def prefix(self) -> str:
        """What stands before the chain's names in the names of the whole model."""
        if self.submodule is None:
            return ""
        is_named = self.form is not None and not self.form.is_one_tensor  # then the part has its own name in the chain
        path = self.submodule.rpartition(".")[0] if is_named else self.submodule
        return f"{path}." if path else ""


def save_checkpoint(
    folder: Path, quantized: QuantizedChain, origin: Origin, elsewhere: Mapping[str, Tensor] | None = None
) -> None:
    """Write both files, each at once or not at all.

    Args:
        folder: exists.
        quantized: a finished chain.
        origin: how it was captured.
        elsewhere: ``saved_tensors`` of the units that other workers have.

    Raises:
        NumericalError: a value is not finite; nothing is written.
    """
    tensors = {**(elsewhere or {}), **saved_tensors(quantized)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"{name} holds a value that is not finite; the model was not saved")
    payload = save_tensors(tensors)
    description = {
        "format": FORMAT,
        **dataclasses.asdict(origin),
        "policy": [_row_to_json(row) for row in quantized.policy],
        "code_shapes": {layer: list(quantized.weight(layer).codes.shape) for layer in quantized.weights},
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    write_atomically(folder / TENSORS, payload)
    write_atomically(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A saved network as chains, on the CPU.

    Attributes:
        floating: the given model's.
        quantized: the saved one's.
        part: the part of the model that it is of, or None for the whole model.
        target: whose kernels it was calibrated for, or None.
    """

    floating: Chain
    quantized: QuantizedChain
    part: Part | None
    target: Target | None


def load_checkpoint(folder: Path, model: nn.Module) -> nn.Module:
    """Return the quantized network that was saved in ``folder``, where the model is; see ``load_chain``."""
    loaded = load_chain(folder, model)
    network = whole(move(loaded.quantized.chain.module, home_of(model)))
    return network if loaded.part is None else loaded.part.put_back(network)


def saved_target(folder: Path) -> Target | None:
    """The target that what is saved in ``folder`` was calibrated for.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        return target_of(_read(Path(folder))[1].target)
    except ArgumentError as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}; this version knows no such target") from None


def load_chain(folder: Path, model: nn.Module) -> Loaded:
    """Return the quantized chain that was saved in ``folder``, beside the float one.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        model: the float architecture; its weights do not matter as long as they are finite; it is not changed.

    Raises:
        CheckpointError: a file is missing or damaged, or the architecture is another one.
    """
    folder = Path(folder)
    tensors, description = _read(folder)
    try:
        part = _part(model, description)
        target = target_of(description.target)
        placement = None if target is None else target.placement
        dtype = torch.int64 if description.input_dtype == "int64" else torch.float32
        example = torch.zeros(2, *description.input_shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainModeWarning)  # only the architecture of the model matters here
            module = model if part is None else part.module
            chain = capture(module, example, unit=description.unit, patterns=description.patterns)
    except ArgumentError as error:
        if error.argument == "model":
            raise
        raise CheckpointError(f"{folder} does not fit {type(model).__name__}: {error}") from None
    if problems := _misfits(chain, description.code_shapes, tensors):
        raise CheckpointError(f"{folder} does not fit {type(model).__name__}: {'; '.join(problems)}")
    if problems := policy_problems(description.policy, chain.module, placement):
        raise CheckpointError(f"{folder} does not fit {type(model).__name__}: {'; '.join(problems)}")
    move(chain.module, torch.device("cpu"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClcalibWarning)  # of weights that are replaced at once
            quantized = insert_quantizers(chain, description.policy, RANGE_RULES["minmax"], placement)
        further = further_biases(quantized.chain.module)
        separate_biases(quantized.chain.module, [name for name in further if f"float/{name}" in tensors])
        others = _other_state(quantized)
        if problems := tensor_problems(quantized, others, description.code_shapes, tensors):
            raise CheckpointError(f"{folder / TENSORS} does not fit its {DESCRIPTION}: {'; '.join(problems)}")
        _restore(quantized, tensors, description.code_shapes)
    except (KeyError, IndexError, TypeError, RuntimeError, ArgumentError) as error:
        raise CheckpointError(f"{folder}: {DESCRIPTION} or {TENSORS} is damaged ({error!r}); save it anew") from None
    return Loaded(chain, quantized, part, target)


def _part(model: nn.Module, description: Description) -> Part | None:
    """The submodule that was quantized; None where it was the whole model."""
    form = description.input_form()
    return None if description.submodule is None or form is None else Part.with_form(model, description.submodule, form)


def _misfits(chain: Chain, code_shapes: Mapping[str, Shape], tensors: dict[str, Tensor]) -> list[str]:
    """Every tensor that is missing, too many, or of another shape than the float architecture has."""
    own = {name: tensor.shape for name, tensor in chain.module.state_dict().items()}
    saved: dict[str, Shape] = {weight_path(layer, own): shape for layer, shape in code_shapes.items()}
    further = {name: str(bias_of(node).target) for name, node in further_biases(chain.module).items()}
    own |= {name: own[bias] for name, bias in further.items() if f"float/{name}" in tensors}
    saved |= {name.removeprefix("float/"): tuple(t.shape) for name, t in tensors.items() if name.startswith("float/")}
    return misfits(own, saved)


def saved_tensors(quantized: QuantizedChain) -> dict[str, Tensor]:
    """What is written of a finished chain, by name: codes packed to their width, scales, and what is left in float."""
    tensors: dict[str, Tensor] = {}
    for layer in quantized.weights:
        weight = quantized.weight(layer)
        if weight.codes.is_meta:
            continue
        tensors[f"codes/{layer}"] = pack(weight.codes.flatten(), weight.spec.bits, weight.spec.is_signed)
        tensors[f"weight_scale/{layer}"] = weight.scale
        tensors[f"weight_zero_point/{layer}"] = weight.zero_point
    for layer in quantized.activations:
        activation = quantized.activation(layer)
        if isinstance(activation, ActivationQuantizer):
            tensors[f"input_scale/{layer}"] = activation.scale
            tensors[f"input_zero_point/{layer}"] = activation.zero_point
    for name, tensor in _other_state(quantized).items():
        tensors[f"float/{name}"] = tensor
    # What has no values here is with another worker.
    present = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in present.items()}


def _other_state(quantized: QuantizedChain) -> dict[str, Tensor]:
    owned = {*quantized.weights.values(), *quantized.activations.values()}
    state: dict[str, Tensor] = quantized.chain.module.state_dict()
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in owned}


def _restore(quantized: QuantizedChain, tensors: dict[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    for layer, name in quantized.weights.items():
        spec, shape = quantized.weight(layer).spec, shapes[layer]
        codes = unpack(tensors[f"codes/{layer}"], spec.bits, math.prod(shape), spec.is_signed).reshape(shape)
        quantized.replace(name, IntegerWeight(codes, _parameters(tensors, "weight", layer, shape), spec))
    for layer, name in quantized.activations.items():
        spec = quantized.activation(layer).spec
        parameters = _parameters(tensors, "input", layer, range_shape(spec))
        quantized.replace(name, ActivationQuantizer(parameters, spec))
    for name, tensor in _other_state(quantized).items():
        tensor.copy_(tensors[f"float/{name}"])


def _parameters(tensors: dict[str, Tensor], kind: str, layer: str, shape: Shape) -> QParams:
    """Scale and zero point that belong to values of this shape."""
    found = QParams(tensors[f"{kind}_scale/{layer}"], tensors[f"{kind}_zero_point/{layer}"])
    own = tuple(found.scale.shape)
    pairs = zip(reversed(own), reversed(shape), strict=False)
    if found.scale.numel() > 1 and (len(own) > len(shape) or any(size not in (1, other) for size, other in pairs)):
        raise ArgumentError(f"{kind}_scale/{layer}", f"a shape that fits {shape}", own)
    if not bool((found.scale > 0).all()):
        raise ArgumentError(f"{kind}_scale/{layer}", "values above 0", "others")
    return found


def _read(folder: Path) -> tuple[dict[str, Tensor], Description]:
    try:
        description = read_description(folder / DESCRIPTION)
        payload = read_bytes(folder / TENSORS, MOST_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: no such file; a saved model has {TENSORS} and {DESCRIPTION}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(payload).hexdigest() != description.sha256:
        raise CheckpointError(f"{folder / TENSORS}: its sha256 is not the one in {DESCRIPTION}; the file is damaged")
    tensors = parse_tensors(payload, folder / TENSORS)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{folder / TENSORS}: {name} holds a value that is not finite; save the model anew")
    return tensors, description


def _row_to_json(row: LayerPolicy) -> dict[str, Any]:
    return {
        "layer": row.layer,
        "reason": row.reason,
        "kind": row.kind,
        "weight": None if row.weight is None else _spec_to_json(row.weight),
        "input": None if row.input is None else _spec_to_json(row.input),
        "right": None if row.right is None else _spec_to_json(row.right),
    }


def _spec_to_json(spec: QuantSpec) -> dict[str, Any]:
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else None
    return {**{k: v for k, v in dataclasses.asdict(spec).items() if k != "granularity"}, "axis": axis}
