"""What a run is told, as frozen sections; a table with problems becomes one error that tells all of them.

The tables come from :mod:`clcalib.config_sources`, the words of the errors from :mod:`clcalib.config_problems`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes import RECIPES, with_contrastive, with_last_phase
from clcalib.checks import BYTES, byte_count
from clcalib.config_problems import describe_errors, machine_problems, options_model, section_of, unknown_name
from clcalib.config_sources import Table, value_at
from clcalib.data.augmentation import AUGMENTATIONS
from clcalib.data.transform import Transform
from clcalib.errors import ArgumentError, ClcalibError, ConfigError
from clcalib.quant.policy import SETTINGS
from clcalib.quant.ranges import RANGE_RULES

Model = TypeVar("Model", bound=BaseModel)

FLOAT_BITS = 32

_ENTRY_FORM = '"package.module:callable" or "path/to/file.py:callable"'
_ENTRY = r"^.+:[A-Za-z_][A-Za-z_0-9.]*$"
_TRANSFORM = Transform()
_BITS = "a whole number from 2 to 8, or 32 for float"


def _check_bits(bits: int) -> int:
    if not 2 <= bits <= 8 and bits != FLOAT_BITS:
        raise ValueError(_BITS)
    return bits


BitWidth = Annotated[int, AfterValidator(_check_bits)]
ByteCount = Annotated[int, BeforeValidator(lambda size: byte_count("memory_budget", size))]


class _Section(BaseModel):
    """One section: frozen, with no unknown key.  A description states what is expected and appears in the errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Where the float model comes from: a callable that builds it, and its trained weights."""

    entry: str = Field(pattern=_ENTRY, description=f"{_ENTRY_FORM} (--model)")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="a table of the callable's arguments")
    weights: Path | None = Field(default=None, description="the path of a .safetensors file")


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

    def transform(self) -> Transform:
        """The transform of calibration and evaluation images."""
        return Transform(
            resize=self.resize,
            crop=self.crop,
            mean=self.mean,
            standard_deviation=self.standard_deviation,
            interpolation=self.interpolation,
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
    """How many bits, and how their ranges are chosen."""

    weights: BitWidth = Field(default=4, description=_BITS)
    activations: BitWidth = Field(default=4, description=_BITS)
    symmetric_weights: bool = Field(default=False, description="true or false")
    symmetric_activations: bool = Field(default=False, description="true or false")
    setting: str = Field(default="qdrop", description="the name of a setting")
    unit_patterns: tuple[str, ...] = Field(default=(), description="a list of globs of modules that are to be units")
    weight_range: str = Field(default="mse_grid", description="the name of a range rule")
    activation_range: str = Field(default="mse_grid", description="the name of a range rule")
    softmax_grid: Literal["uniform", "log2", "log_sqrt2"] = Field(
        default="uniform", description='"uniform", "log2" or "log_sqrt2"'
    )
    gelu_grid: Literal["uniform", "twin"] = Field(default="uniform", description='"uniform" or "twin"')
    reparameterized_layer_norm: bool = Field(default=False, description="true or false")
    overrides: dict[str, Widths] = Field(default_factory=dict, description="a table of name pattern -> widths")


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
    out: Path = Field(description="the path of the output folder (--out)")
    overwrite: bool = Field(default=False, description="true or false")
    memory_budget: ByteCount | None = Field(default=None, description=BYTES)
    spill_folder: Path | None = Field(default=None, description="the path of a folder for temporary files")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description='"auto", "float32" or "bfloat16"'
    )


class ModelConfig(_Section):
    """What a command needs that only looks at the model; the images may tell their shape."""

    model: ModelSection
    data: DataSection | None = None


class EvaluationConfig(_Section):
    """What a command needs that evaluates a saved model."""

    model: ModelSection
    data: ImagesSection = Field(default_factory=ImagesSection)
    run: ComputeSection = Field(default_factory=ComputeSection)


class RunConfig(_Section):
    """Everything that a run depends on."""

    model: ModelSection
    data: DataSection
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)
    recipe: RecipeSection = Field(default_factory=RecipeSection)
    contrastive: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    last_phase: dict[str, Any] | None = Field(default=None, description="a table of settings; leave it out for none")
    run: RunSection


def build(config_type: type[Model], table: Table, source: str) -> Model:
    """Turn a table into a configuration.

    Args:
        config_type: RunConfig, EvaluationConfig or ModelConfig.  Keys that only a RunConfig has are left out for the
            smaller ones, so that one TOML serves every command.
        table: section -> key -> value, with absolute paths.
        source: what the errors call it, such as the TOML's path.

    Raises:
        ConfigError: unknown keys (with the nearest valid one), wrong values, missing files, a device that is not
            there, an unknown recipe or option: all of them in one error.
    """
    table = _for_type(config_type, table)
    problems = [*_structural(config_type, table), *_name_problems(table), *machine_problems(table)]
    if problems:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return _parse(config_type, table)


def make_recipe(
    recipe: RecipeSection, contrastive: Mapping[str, Any] | None, last_phase: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that the sections ``[recipe]``, ``[contrastive]`` and ``[last_phase]`` stand for.

    Raises:
        ClcalibError: an option has a value that the recipe refuses.
    """
    host = RECIPES[recipe.name](**recipe.options)
    host = host if last_phase is None else with_last_phase(host, **last_phase)
    return host if contrastive is None else with_contrastive(host, **contrastive)


def _for_type(config_type: type[BaseModel], table: Table) -> dict[str, Any]:
    """Drop the keys that a RunConfig knows and ``config_type`` does not; truly unknown keys stay, to be refused."""
    kept: dict[str, Any] = {}
    for section, values in table.items():
        field = config_type.model_fields.get(section)
        if field is None and section in RunConfig.model_fields:
            continue
        small, large = (_keys(kind, section) for kind in (config_type, RunConfig))
        if isinstance(values, Mapping) and small:
            values = {key: value for key, value in values.items() if key in small or key not in large}
        kept[section] = values
    # An absent section is an empty one, so that the errors name the keys that it must have.
    absent = (name for name, field in config_type.model_fields.items() if field.is_required() and name not in kept)
    return {**kept, **{name: {} for name in absent}}


def _keys(config_type: type[BaseModel], section: str) -> set[str]:
    field = config_type.model_fields.get(section)
    kind = section_of(field.annotation) if field else None
    return set(kind.model_fields) if kind else set()


def _name_problems(table: Table) -> Iterator[str]:
    """Yield what is wrong with names that stand in literal tables, with the transform and with recipe options."""
    tables = {"setting": SETTINGS, "weight_range": RANGE_RULES, "activation_range": RANGE_RULES}
    for key, valid in tables.items():
        name = value_at(table, "quantization", key)
        if isinstance(name, str) and name not in valid:
            yield unknown_name(f"quantization.{key}", name, valid)
    yield from _augmentation_problems(value_at(table, "data", "augment"))
    if value_at(table, "data", "augment_copies") is not None and value_at(table, "data", "augment") in (None, [], ()):
        yield "data.augment_copies: expected names in data.augment too (--augment with --augment-copies), got none"
    yield from _transform_problems(table.get("data"))
    yield from _recipe_problems(table.get("recipe", {}), table.get("contrastive"), table.get("last_phase"))


def _augmentation_problems(names: object) -> Iterator[str]:
    texts = [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
    yield from (unknown_name("data.augment", name, AUGMENTATIONS) for name in texts if name not in AUGMENTATIONS)
    if len(set(texts)) < len(texts):
        yield f"data.augment: expected each name once, got {', '.join(texts)}; raise data.augment_copies instead"


def _transform_problems(data: object) -> Iterator[str]:
    names = ("mean", "standard_deviation", "resize", "crop", "interpolation")
    values = {key: data[key] for key in names if key in data} if isinstance(data, Mapping) else {}
    if values and not _structural(ImagesSection, values):
        try:
            _parse(ImagesSection, values).transform()
        except ArgumentError as error:
            yield f"data.{error}"


def _recipe_problems(recipe: object, contrastive: object, last_phase: object) -> Iterator[str]:
    settings = contrastive if isinstance(contrastive, Mapping) else None
    last = last_phase if isinstance(last_phase, Mapping) else None
    term_problems = [] if settings is None else _option_problems("contrastive", with_contrastive, settings)
    term_problems += [] if last is None else _option_problems("last_phase", with_last_phase, last)
    yield from term_problems
    name = recipe.get("name", RecipeSection().name) if isinstance(recipe, Mapping) else None
    if not isinstance(recipe, Mapping) or not isinstance(name, str):
        return  # the wrong type is told already
    if name not in RECIPES:
        yield unknown_name("recipe.name", name, RECIPES)
        return
    problems = _option_problems("recipe", RECIPES[name], {key: value for key, value in recipe.items() if key != "name"})
    yield from problems
    if problems or term_problems:
        return
    section = "recipe"
    try:
        host = make_recipe(RecipeSection(**recipe), None)
        section = "last_phase"
        host = host if last is None else with_last_phase(host, **last)
        section = "contrastive"
        if settings is not None:
            with_contrastive(host, **settings)
    except ClcalibError as error:
        yield f"{section}: {error}"


def _option_problems(section: str, function: Any, options: Table) -> list[str]:
    return [f"{section}.{problem}" for problem in _structural(options_model(function), options)]


def _structural(model: type[BaseModel], table: Table) -> list[str]:
    try:
        _parse(model, table)
    except ValidationError as error:
        return describe_errors(model, error)
    return []


def _parse(model: type[Model], table: Table) -> Model:
    # Through JSON, because pydantic's strict JSON mode is what TOML means: a list is a tuple, a string is a path,
    # and "500" is not a number.
    return model.model_validate_json(json.dumps(table, default=str), strict=True)
