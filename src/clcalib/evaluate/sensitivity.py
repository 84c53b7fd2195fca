"""How much each unit alone changes what the network says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance


@torch.no_grad()
def unit_sensitivities(floating: Chain, quantized: Chain, images: Tensor) -> dict[str, float]:
    """KL(float outputs, outputs with one unit quantized), mean over images (K, ...), in nats, by the unit's name.

    Every unit reads the float prefix and is followed by the float rest; the prefix is computed once for all.
    """
    state: State = (images,)
    whole = floating.subgraph((floating.input_name,), (floating.output_name,))
    truth = advance(whole, state)[0].log_softmax(1)
    found = {}
    for index, unit in enumerate(floating.units):
        changed = advance(quantized.body(index), state)
        outputs = advance(floating.suffix(index), changed)[0].log_softmax(1)
        found[unit.name] = float(F.kl_div(outputs, truth, reduction="batchmean", log_target=True))
        state = advance(floating.body(index), state)
    return found
