"""PyTorch's own flow on exported graphs (torchao PT2E), with its quantizer for x86: 8 bits."""

from __future__ import annotations

import torch
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from peers.adapter import BATCH, Job, Predict, Tensor, batches, main, nn


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    dynamic = ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(model, (calibration[:BATCH],), dynamic_shapes=dynamic).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    graph = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in batches(calibration):
            graph(batch)
    graph = convert_pt2e(graph)
    move_exported_model_to_eval(graph)
    return graph


if __name__ == "__main__":
    main(quantize, ("torchao",))
