"""``clcalib targets``: the runtimes whose rules a network can be calibrated under."""

from __future__ import annotations

from clcalib.cli.options import JsonOption

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib targets\n\n"
    "clcalib targets --json\n\n"
    "clcalib quantize run.toml --bits W8A8 --target onnxruntime --out runs/deployed"
)


def targets(*, is_json: JsonOption = False) -> None:
    """List the targets of clcalib quantize --target, and what their integer kernels take.

    A target decides which tensors are quantized, their widths and their
    signs, before calibration, so that nothing changes when the result is
    written for the runtime.
    """
    from clcalib.cli.actions.targets import show_targets

    show_targets(is_json=is_json)
