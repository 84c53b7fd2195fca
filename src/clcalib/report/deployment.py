"""What was written for a target, and what its runtime makes of it: a part of the run record."""

from __future__ import annotations

from clcalib.report.values import Count, Fraction, Frozen


class TensorRecord(Frozen):
    """How the codes of one quantized tensor differ between runtime and simulation (``export/roundtrip.py``).

    Attributes:
        name: the tensor's node.
        own, own_share: largest difference, and share of codes that differ, with the same codes one quantizer before.
        whole, whole_share: the same from the image on.
    """

    name: str
    own: Count
    own_share: Fraction
    whole: Count
    whole_share: Fraction


class FloatOperationRecord(Frozen):
    """An operation that a runtime computes in float, and why."""

    name: str
    operation: str
    reason: str


class DeploymentRecord(Frozen):
    """The file for a target, and what its runtime makes of it.

    Attributes:
        target: the target's name.
        file: the file's name, beside this record.
        file_bytes: its size.
        runtime: the runtime that executed it and its version; None where it is not installed, or there is none.
        images: how many held-out images both were compared on.
        top1_simulated, top1_runtime: accuracy on them; None without labels.
        agreement: share of images for which both name the same class.
        largest_output_difference: of any output.
        max_code_difference: the largest difference that a kernel makes by itself; more than 1 is a defect.
        parting: the first tensor where a code differs, None where none does.
        integer_layers, float_layers: layers with weights, by what the runtime computes them with.
        integer_operations, float_operations: all operations.
        in_float: those in float.
        tensors: every quantized tensor.
    """

    target: str
    file: str
    file_bytes: Count
    runtime: str | None = None
    images: Count = 0
    top1_simulated: Fraction | None = None
    top1_runtime: Fraction | None = None
    agreement: Fraction | None = None
    largest_output_difference: float | None = None
    max_code_difference: Count | None = None
    parting: str | None = None
    integer_layers: Count | None = None
    float_layers: Count | None = None
    integer_operations: Count | None = None
    float_operations: Count | None = None
    in_float: tuple[FloatOperationRecord, ...] = ()
    tensors: tuple[TensorRecord, ...] = ()
