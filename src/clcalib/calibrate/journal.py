"""What the walk saves as it goes, and finds again: finished units.

A unit is its quantizers and the biases of their layers; the stores of activations between units are computed again
from them, bit for bit, in a fraction of the time.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clcalib import errors
from clcalib.calibrate.layout import device_of
from clcalib.durable import stop
from clcalib.durable.payload import Payload
from clcalib.errors import ClcalibWarning, Interrupted
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.modules import ActivationQuantizer, Bias, IntegerWeight
from clcalib.quant.spec import QParams
from clcalib.team.parts import Parts

SNAPSHOT_SECONDS = 60.0
BIAS = "bias"  # what the value of a bias is saved as
Quantizers = Mapping[str, IntegerWeight | ActivationQuantizer | Bias]


@dataclasses.dataclass(frozen=True)
class Journal:
    """A run's saved state as the walk sees it.

    Attributes:
        state: where it is; None where nothing is saved.
        snapshot_seconds: most time between two saves inside a unit.
        prefix: of the names of units, so that those of the last phase are others.
        heed: called before each step; it may ask elsewhere whether the run is to stop.
    """

    state: Parts | None = None
    snapshot_seconds: float = SNAPSHOT_SECONDS
    prefix: str = "unit"
    heed: Callable[[], None] = dataclasses.field(default=lambda: None)

    def name(self, index: int) -> str:
        """What a finished unit is saved as."""
        return f"{self.prefix}-{index:05d}"

    def has(self, name: str) -> bool:
        """Whether a part of this name is saved, be it whole or not."""
        return self.state is not None and name in self.state.names

    def recall(
        self, name: str, chain: QuantizedChain, check: Callable[[Mapping[str, Any]], object] = lambda values: None
    ) -> Payload | None:
        """Put the quantizers of a saved part into their places and tell its warnings again.

        Args:
            name: of the part.
            chain: where its quantizers belong.
            check: raises KeyError, TypeError or ValueError where the part's values are not what is needed; a part that
                does not fit is taken as not saved.

        Returns:
            what was saved, or None where nothing was.
        """
        saved = None if self.state is None else self.state.get(name)
        if saved is None or self.state is None:
            return None
        try:
            quantizers = quantizers_from(saved.tensors, chain)
            told = [(str(kind), str(text)) for kind, text in saved.values["warnings"]]
            check(saved.values)
        except (KeyError, ValueError, TypeError) as error:
            self.state.refuse(name, f"it does not fit the network ({error})")
            return None
        for place, quantizer in quantizers.items():
            chain.replace(place, quantizer)
        for kind, text in told:
            warnings.warn(text, _category(kind), stacklevel=3)
        return saved

    def commit(
        self, index: int, count: int, quantizers: Quantizers, trace: object, told: Sequence[warnings.WarningMessage]
    ) -> None:
        """Save a finished unit, and raise where the run was asked to stop.

        Args:
            index: of the unit.
            count: of all units.
            quantizers: its quantizers, by name.
            trace: a dataclass of plain values.
            told: the warnings that it gave.

        Raises:
            StorageError: it could not be saved.
            Interrupted: the run was asked to stop.
        """
        later = [self.name(number) for number in range(index + 1, count)]
        values = {"trace": dataclasses.asdict(trace)}  # type: ignore[call-overload]
        self._save(self.name(index), quantizers, told, values, instead_of=self.partial_name(index), before=later)

    def commit_part(self, name: str, quantizers: Quantizers, told: Sequence[warnings.WarningMessage]) -> None:
        """Save something else that is finished; see ``commit``."""
        self._save(name, quantizers, told, {})

    def _save(
        self,
        name: str,
        quantizers: Quantizers,
        told: Sequence[warnings.WarningMessage],
        values: Mapping[str, Any],
        **replacing: Any,
    ) -> None:
        if self.state is not None:
            # That a tracker failed is of no concern to the process that goes on.
            lasting = [message for message in told if not issubclass(message.category, errors.TrackingWarning)]
            texts = [[message.category.__name__, str(message.message)] for message in lasting]
            self.state.put(name, Payload(tensors_of(quantizers), {**values, "warnings": texts}), **replacing)
        raise_if_stopped()

    def partial_name(self, index: int) -> str:
        """What the steps of a unit are saved as."""
        return f"{self.name(index)}-part"


def tensors_of(quantizers: Quantizers) -> dict[str, Tensor]:
    """The tensors that quantizers are saved as; codes in one byte."""
    found = dict[str, Tensor]()
    for name, module in quantizers.items():
        if isinstance(module, Bias):
            found[f"{name}/{BIAS}"] = module.value
            continue
        if isinstance(module, IntegerWeight):
            found[f"{name}/codes"] = module.codes.to(torch.int8 if module.spec.is_signed else torch.uint8)
        found[f"{name}/scale"], found[f"{name}/zero_point"] = module.scale, module.zero_point
    return found


def quantizers_from(tensors: Mapping[str, Tensor], chain: QuantizedChain) -> dict[str, nn.Module]:
    """The quantizers that were saved, for their places in a chain.

    Raises:
        ValueError, KeyError: they do not fit.
    """
    found = dict[str, nn.Module]()
    modules = dict(chain.chain.module.named_modules())
    device, state = device_of(chain.chain), chain.chain.module.state_dict()
    for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors if not key.startswith("group/")):
        if f"{name}/{BIAS}" in tensors:
            found[name] = bias = Bias(tensors[f"{name}/{BIAS}"].to(device))
            if bias.value.shape != state[name].shape:
                raise ValueError(f"{name} has another shape")
            continue
        place = modules[name]
        parameters = QParams(tensors[f"{name}/scale"].to(device), tensors[f"{name}/zero_point"].to(device))
        if isinstance(place, IntegerWeight):
            codes = tensors[f"{name}/codes"].to(device)
            if codes.shape != place.codes.shape or parameters.scale.shape != place.scale.shape:
                raise ValueError(f"{name} has other shapes")
            found[name] = IntegerWeight(codes, parameters, place.spec)
        else:
            found[name] = ActivationQuantizer(parameters, place.spec)
    return found


def raise_if_stopped() -> None:
    """Raise where the run was asked to stop; what is finished is saved.

    Raises:
        Interrupted: it was.
    """
    if stop.is_asked():
        raise Interrupted


def _category(name: str) -> type[ClcalibWarning]:
    found = getattr(errors, name, ClcalibWarning)
    return found if isinstance(found, type) and issubclass(found, ClcalibWarning) else ClcalibWarning
