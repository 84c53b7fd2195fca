"""Tables become a configuration, or one error that tells all their problems.

The sections are in :mod:`clcalib.config_sections`, the tables come from :mod:`clcalib.config_sources`, the words of the
errors from :mod:`clcalib.config_problems`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes import ADDITIONS, RECIPES
from clcalib.config_problems import describe_errors, machine_problems, options_model, section_of, unknown_name
from clcalib.config_sections import ImagesSection, RecipeSection, RunConfig
from clcalib.config_sources import Table, value_at
from clcalib.config_transform import TRANSFORM_KEYS, transform_problems, with_own_transform
from clcalib.data.augmentation import AUGMENTATIONS
from clcalib.errors import ArgumentError, ClcalibError, ConfigError
from clcalib.named_models import PRETRAINED, is_named, problem
from clcalib.quant.policy import SETTINGS
from clcalib.quant.ranges import RANGE_RULES

Model = TypeVar("Model", bound=BaseModel)


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
    table = with_own_transform(_for_type(config_type, table))
    problems = [*_structural(config_type, table), *_name_problems(table), *machine_problems(table)]
    if problems:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return _parse(config_type, table)


def make_recipe(recipe: RecipeSection, additions: Mapping[str, Mapping[str, Any] | None] | None = None) -> Recipe:
    """The recipe that the section ``[recipe]`` stands for, with what is laid over it.

    Args:
        recipe: the section.
        additions: by name in ``ADDITIONS``, the section of each that is wanted; None for none.

    Raises:
        ClcalibError: an option has a value that the recipe refuses.
    """
    made, given = RECIPES[recipe.name](**recipe.options), additions or {}
    for section, addition in ADDITIONS.items():
        options = given.get(section)
        made = made if options is None else addition(made, **options)
    return made


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
    yield from _model_problems(table)
    yield from _guard_problems(table)
    yield from _augmentation_problems(value_at(table, "data", "augment"))
    # One copy is the default, which a saved configuration has too.
    if value_at(table, "data", "augment_copies") not in (None, 1) and value_at(table, "data", "augment") in (
        None,
        [],
        (),
    ):
        yield "data.augment_copies: expected names in data.augment too (--augment with --augment-copies), got none"
    yield from _transform_problems(table.get("data"))
    yield from transform_problems(table)
    yield from _recipe_problems(table.get("recipe", {}), table)


def _model_problems(table: Table) -> Iterator[str]:
    """Yield what is wrong with the name of a network, and with weights that only a name can have."""
    entry = value_at(table, "model", "entry")
    if isinstance(entry, str) and is_named(entry):
        wrong = problem(entry)
        if wrong is not None:
            yield str(wrong)
    elif isinstance(entry, str) and value_at(table, "model", "weights") == PRETRAINED:
        yield (
            f'model.weights (--pretrained): expected the path of a file, got "{PRETRAINED}"; only networks by name, '
            "such as torchvision:resnet18 or timm:resnet18, have published weights"
        )


def _guard_problems(table: Table) -> Iterator[str]:
    if value_at(table, "guard", "enabled") is not False:
        return
    for key, flag in (("images", "--guard-images"), ("tolerance", None)):
        asked = value_at(table, "guard", key)
        if asked is not None and asked != 0:
            named = f" ({flag})" if flag else ""
            yield f"guard.{key}{named}: expected none without the guard (--no-guard), got {asked}; leave one out"


def _augmentation_problems(names: object) -> Iterator[str]:
    texts = [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
    yield from (unknown_name("data.augment", name, AUGMENTATIONS) for name in texts if name not in AUGMENTATIONS)
    if len(set(texts)) < len(texts):
        yield f"data.augment: expected each name once, got {', '.join(texts)}; raise data.augment_copies instead"


def _transform_problems(data: object) -> Iterator[str]:
    values = {key: data[key] for key in TRANSFORM_KEYS if key in data} if isinstance(data, Mapping) else {}
    if values and not _structural(ImagesSection, values):
        try:
            _parse(ImagesSection, values).transform()
        except ArgumentError as error:
            yield f"data.{error}"


def _recipe_problems(recipe: object, table: Table) -> Iterator[str]:
    given = {section: table.get(section) for section in ADDITIONS}
    added = {section: options for section, options in given.items() if isinstance(options, Mapping)}
    term_problems = [p for section in added for p in _option_problems(section, ADDITIONS[section], added[section])]
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
        host = make_recipe(RecipeSection(**recipe))
        for section, options in added.items():
            host = ADDITIONS[section](host, **options)
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
