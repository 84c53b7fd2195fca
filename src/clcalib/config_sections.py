"""The sections of a configuration: what each key means, its default, and what it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from clcalib.checks import BYTES, byte_count
from clcalib.data.decode import MOST_PIXELS
from clcalib.data.transform import Transform
from clcalib.errors import ArgumentError
from clcalib.quant.policy import EDGE_BITS, FLOAT_BITS, WIDTHS, Bits, EdgeBits, Override
from clcalib.quant.spec import MAXIMUM_BITS, MINIMUM_BITS
from clcalib.width_search import CANDIDATES, IMAGES, Budget, Measure, Per

_ENTRY_FORM = '"torchvision:NAME", "timm:NAME", "package.module:callable" or "path/to/file.py:callable"'
_ENTRY = r"^.+:[A-Za-z_][A-Za-z_0-9.]*$"
_TRANSFORM = Transform()
_BITS = "a whole number from 2 to 8, or 32 for float"
_EDGE_BITS = f'{_BITS}, or "same"'


def _check_bits(bits: int) -> int:
    if not 2 <= bits <= 8 and bits != FLOAT_BITS:
        raise ValueError(_BITS)
    return bits


def _check_edge_bits(bits: object) -> object:
    if bits == "same" or (type(bits) is int and _check_bits(bits)):
        return bits
    raise ValueError(_EDGE_BITS)


def _from_text(widths: object) -> object:
    """A text such as "W4A8" or "float" as the table of an override."""
    if not isinstance(widths, str):
        return widths
    try:
        parsed = Override.parse("", widths)
    except ArgumentError:
        raise ValueError(WIDTHS) from None
    both = {"weights": parsed.weights, "activations": parsed.activations}
    return {name: bits or FLOAT_BITS for name, bits in both.items() if bits != "default"}


BitWidth = Annotated[int, AfterValidator(_check_bits)]
ByteCount = Annotated[int, BeforeValidator(lambda size: byte_count("memory_budget", size))]

SizeInBytes = Annotated[int, BeforeValidator(lambda size: byte_count("size", size))]
CandidateWidth = Annotated[int, Field(ge=MINIMUM_BITS, le=MAXIMUM_BITS, description="a whole number from 2 to 8")]


class _Section(BaseModel):
    """One section: frozen, with no unknown key.  A description states what is expected and appears in the errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Where the float model comes from: a callable that builds it, and its trained weights."""

    entry: str = Field(pattern=_ENTRY, description=f"{_ENTRY_FORM} (--model)")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="a table of the callable's arguments")
    weights: Path | None = Field(
        default=None, description='the path of a .safetensors or .pt file, or "pretrained" for those of a library'
    )
    submodule: str | None = Field(
        default=None, min_length=1, description="the path of the module to be quantized, such as backbone"
    )


class ImagesSection(_Section):
    """Evaluation images, and how images are turned into tensors."""

    evaluation: Path | None = Field(default=None, description="the path of the evaluation images")
    evaluation_count: int | None = Field(
        default=None, ge=1, description="a whole number of evaluation images, at least 1"
    )
    mean: tuple[float, ...] = Field(default=_TRANSFORM.mean, description="a list of one mean per channel")
    standard_deviation: tuple[float, ...] = Field(
        default=_TRANSFORM.standard_deviation, description="a list of one standard deviation per channel"
    )
    resize: int | None = Field(default=_TRANSFORM.resize, ge=1, description="a whole number of pixels, at least 1")
    crop: int | None = Field(default=_TRANSFORM.crop, ge=1, description="a whole number of pixels, at least 1")
    interpolation: str = Field(default=_TRANSFORM.interpolation, description='"bilinear" or "bicubic"')
    squash: bool = Field(default=_TRANSFORM.squash, description="true or false")
    most_pixels: int = Field(
        default=MOST_PIXELS, ge=1, description="a whole number of pixels that an image file may have, at least 1"
    )

    def transform(self) -> Transform:
        """The transform of calibration and evaluation images."""
        return Transform(
            resize=self.resize,
            crop=self.crop,
            mean=self.mean,
            standard_deviation=self.standard_deviation,
            interpolation=self.interpolation,
            squash=self.squash,
        )


class DataSection(ImagesSection):
    """The same, with the calibration images.  Held-out images are evaluation images that are not calibration images."""

    calibration: Path = Field(description="the path of the calibration images (--calibration)")
    count: int | None = Field(default=None, ge=1, description="a whole number of calibration images, at least 1")
    augment: tuple[str, ...] = Field(default=(), description="a list of names of augmentations (--augment)")
    augment_copies: int = Field(default=1, ge=1, description="a whole number of augmented copies, at least 1")
    held_out_count: int = Field(default=256, ge=0, description="a whole number of held-out images, at least 0")


class Widths(_Section):
    """The bits of the layers of one name pattern; what is not given is as it would be without the pattern."""

    weights: BitWidth | None = Field(default=None, description=_BITS)
    activations: BitWidth | None = Field(default=None, description=_BITS)


class QuantizationSection(_Section):
    """How many bits, and how their ranges are chosen.

    ``overrides`` gives pattern -> widths, as a table or as a text: ``"layer4.*" = "W4A8"``, ``"@depthwise" = "float"``.
    """

    weights: BitWidth = Field(default=4, description=_BITS)
    activations: BitWidth = Field(default=4, description=_BITS)
    symmetric_weights: bool = Field(default=False, description="true or false")
    symmetric_activations: bool = Field(default=False, description="true or false")
    target: str | None = Field(default=None, description="the name of a target (--target)")
    setting: str = Field(default="qdrop", description="the name of a setting")
    unit_patterns: tuple[str, ...] = Field(default=(), description="a list of globs of modules that are to be units")
    weight_range: str = Field(default="mse_grid", description="the name of a range rule")
    activation_range: str = Field(default="mse_grid", description="the name of a range rule")
    first_last_bits: Annotated[int | Literal["same"], BeforeValidator(_check_edge_bits)] = Field(
        default=EDGE_BITS, description=_EDGE_BITS
    )
    softmax_grid: Literal["uniform", "log2", "log_sqrt2"] = Field(
        default="uniform", description='"uniform", "log2" or "log_sqrt2"'
    )
    gelu_grid: Literal["uniform", "twin"] = Field(default="uniform", description='"uniform" or "twin"')
    reparameterized_layer_norm: bool = Field(default=False, description="true or false")
    overrides: dict[str, Annotated[Widths, BeforeValidator(_from_text)]] = Field(
        default_factory=dict, description="a table of pattern -> widths"
    )

    def bits(self) -> Bits:
        """The widths of layers that no rule and no pattern changes."""
        return Bits(
            _width(self.weights),
            _width(self.activations),
            is_weight_symmetric=self.symmetric_weights,
            is_activation_symmetric=self.symmetric_activations,
        )

    def edge_bits(self) -> EdgeBits:
        """The width of the first and the last layer."""
        return "same" if self.first_last_bits == "same" else _width(self.first_last_bits)

    def layer_overrides(self) -> dict[str, Override]:
        """Widths by pattern; a width that a pattern leaves out stays as it is without the pattern."""
        return {
            pattern: Override(
                "default" if widths.weights is None else _width(widths.weights),
                "default" if widths.activations is None else _width(widths.activations),
            )
            for pattern, widths in self.overrides.items()
        }


class RecipeSection(BaseModel):
    """A host method by name; the other keys are the options of its function."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(default="fast", description="the name of a recipe")

    @property
    def options(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.model_extra or {})


class ComputeSection(_Section):
    """On what a command computes."""

    device: str = Field(
        default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description='"cpu", "cuda", "cuda:N" or "mps"'
    )
    threads: int | None = Field(default=None, ge=1, description="a whole number of threads, at least 1")


class RunSection(ComputeSection):
    """The same, with the seed and the place of the results."""

    seed: int = Field(default=0, ge=0, description="a whole number, at least 0")
    shards: int = Field(default=1, ge=1, description="a whole number of parts of the images, at least 1 (--shards)")
    out: Path = Field(description="the path of the output folder (--out)")
    overwrite: bool = Field(default=False, description="true or false")
    memory_budget: ByteCount | None = Field(default=None, description=BYTES)
    spill_folder: Path | None = Field(default=None, description="the path of a folder for temporary files")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description='"auto", "float32" or "bfloat16"'
    )
    cache_precision: Literal["float32", "bfloat16"] = Field(default="float32", description='"float32" or "bfloat16"')


class GuardSection(_Section):
    """Whether a unit that the optimisation made worse goes back to nearest rounding, and what that is judged on."""

    enabled: bool = Field(default=True, description="true or false")
    images: int = Field(
        default=0, ge=0, description="a whole number of calibration images to keep aside for it, at least 0"
    )
    tolerance: float | None = Field(
        default=None, ge=0, description="a share of the error with nearest rounding, at least 0; 0.05 is 5 %"
    )


class TargetSection(_Section):
    """The accuracy that must be kept; widths are raised until it is."""

    max_drop: float = Field(gt=0, lt=100, description="a number of percentage points above 0 (--max-drop)")
    rounds: int = Field(default=6, ge=1, description="a whole number of runs at most, at least 1")


class BudgetSection(_Section):
    """What the widths of layers may cost; they are chosen so that they hurt least within it."""

    size: SizeInBytes | None = Field(default=None, description=f"{BYTES} (--size-budget)")
    cost: float | None = Field(
        default=None, gt=0, description="a share above 0 of the bit operations with 8 bits everywhere (--cost-budget)"
    )
    weights: tuple[CandidateWidth, ...] = Field(default=CANDIDATES, description="a list of whole numbers from 2 to 8")
    activations: tuple[CandidateWidth, ...] = Field(default=(), description="a list of whole numbers from 2 to 8")
    per: Per = Field(default="unit", description='"unit" or "layer"')
    measure: Measure = Field(default="divergence", description='"divergence" or "changed"')
    images: int = Field(default=IMAGES, ge=1, description="a whole number of calibration images, at least 1")

    def budget(self) -> Budget:
        """The budget that the section stands for.

        Raises:
            ArgumentError: it names neither a size nor a cost, or no candidates.
        """
        return Budget(**self.model_dump())


class TrackingSection(_Section):
    """Experiment trackers that are told of the run; none by default, and none changes a result."""

    tensorboard: Path | None = Field(default=None, description="the path of a folder for event files (--tensorboard)")
    mlflow: str | None = Field(
        default=None, min_length=1, description="a folder, an address such as sqlite:///runs.db, or MLFLOW_TRACKING_URI"
    )


class ModelConfig(_Section):
    """What a command needs that only looks at the model; the images may tell their shape."""

    model: ModelSection
    data: DataSection | None = None
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)


class EvaluationConfig(_Section):
    """What a command needs that evaluates a saved model."""

    model: ModelSection
    data: ImagesSection = Field(default_factory=ImagesSection)
    run: ComputeSection = Field(default_factory=ComputeSection)


class OnnxEvaluationConfig(_Section):
    """The same for an ONNX file, which needs no network; with one, the two are compared."""

    model: ModelSection | None = None
    data: ImagesSection = Field(default_factory=ImagesSection)
    run: ComputeSection = Field(default_factory=ComputeSection)


class RunConfig(_Section):
    """Everything that a run depends on."""

    model: ModelSection
    data: DataSection
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)
    recipe: RecipeSection = Field(default_factory=RecipeSection)
    contrastive: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    biases: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    last_phase: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    tuning: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    guard: GuardSection = Field(default_factory=GuardSection)
    target: TargetSection | None = Field(default=None, description="a table with max_drop; leave it out for none")
    budget: BudgetSection | None = Field(
        default=None, description="a table with size or cost; leave it out for widths that are given"
    )
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    run: RunSection


def _width(bits: int) -> int | None:
    return None if bits == FLOAT_BITS else bits
