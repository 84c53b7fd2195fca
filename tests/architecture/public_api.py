"""The public interface as a text: names with signatures, fields and methods, options, TOML keys, file formats.

``make api`` writes ``public_api.txt`` anew.  Annotations are taken as they stand in the source, so that the text is the
same for every version of Python and torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import clcalib
from clcalib.cli import app as command_line
from clcalib.cli import codes
from clcalib.config_problems import section_of
from clcalib.config_sections import RunConfig
from clcalib.config_sources import CONFIG_FILE
from clcalib.export import checkpoint, checkpoint_description
from clcalib.pipeline import RECORD_FILE
from clcalib.report import record

SNAPSHOT = Path(__file__).with_name("public_api.txt")
_TITLES = ("Python", "modules", "command line", "exit codes", "configuration", "run.json", "file formats")


def public_api() -> str:
    """All of it, a line for each thing that a user can rely on."""
    parts = (python_names(), modules(), commands(), exit_codes(), configuration(), run_record(), file_formats())
    return "\n".join(f"# {title}\n" + "\n".join(lines) + "\n" for title, lines in zip(_TITLES, parts, strict=True))


def python_names() -> Iterator[str]:
    for name in clcalib.__all__:
        yield from value_lines(name, getattr(clcalib, name))


def modules() -> Iterator[str]:
    """The names of the modules among them."""
    for module in filter(inspect.ismodule, (getattr(clcalib, name) for name in clcalib.__all__)):
        for name in module.__all__:
            yield from value_lines(f"{module.__name__.rpartition('.')[2]}.{name}", getattr(module, name))


def value_lines(name: str, value: Any) -> Iterator[str]:
    if inspect.ismodule(value):
        yield f"{name}: module"
    elif inspect.isclass(value):
        yield from class_lines(name, value)
    elif callable(value):
        yield from call_lines(name, value)
    else:
        yield f"{name}: " + ", ".join(value)


def class_lines(name: str, kind: type) -> Iterator[str]:
    """The class, its fields and what else it has under a public name."""
    yield f"class {name}"
    if issubclass(kind, BaseModel):
        yield "    fields: those of run.json below" if kind is record.RunRecord else f"    {list(kind.model_fields)}"
        return
    if dataclasses.is_dataclass(kind):
        yield from (f"    {line}" for line in map(field_line, dataclasses.fields(kind)) if not line.startswith("_"))
    for other, value in vars(kind).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if other.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"    {other}: property"
        elif isinstance(plain, types.FunctionType):
            word = type(value).__name__ + " " if plain is not value else ""
            yield from (f"    {line}" for line in call_lines(word + other, plain))


def call_lines(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """An argument a line, so that a difference names what has changed."""
    signature = inspect.signature(function)
    yield f"{name}() -> {signature.return_annotation}"
    is_named = False
    for argument in signature.parameters.values():
        if argument.kind is argument.KEYWORD_ONLY and not is_named:
            is_named = True
            yield "    *"
        if argument.name not in ("self", "cls"):
            stars = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(argument.kind, "")
            default = default_text(argument.default, argument.empty)
            yield f"    {stars}{argument.name}: {argument.annotation}{default}"


def field_line(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return f"{field.name}: {field.type}{default_text(default, dataclasses.MISSING)}"


def default_text(value: object, missing: object) -> str:
    if value is missing:
        return ""
    return f" = {value.__name__}" if inspect.isroutine(value) else f" = {value!r}"


def commands() -> Iterator[str]:
    yield from command_lines("clcalib", typer.main.get_command(command_line.app))


def command_lines(path: str, command: Any) -> Iterator[str]:
    """A command with its parameters, then the ones inside it."""
    yield path
    for each in command.params:
        names = [*each.opts, *each.secondary_opts] if each.param_type_name == "option" else [each.name]
        notes = ["flag" if getattr(each, "is_flag", False) else each.metavar or "VALUE"]
        notes += ["repeated"] if each.multiple or each.nargs == -1 else []
        notes += ["required"] if each.required else []
        shown = "" if each.default is None or each.required else f" = {each.default!r}"
        yield f"    {', '.join(names)}: {' '.join(notes)}{shown}"
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from command_lines(f"{path} {name}", inner)


def exit_codes() -> Iterator[str]:
    names = ("OK", "INTERNAL", "BAD_INPUT", "OUTPUT_EXISTS", "NOT_WRITTEN", "IN_USE", "WORKER_LOST", "INTERRUPTED")
    yield from (f"{getattr(codes, name)} {name.lower()}" for name in names)


def configuration() -> Iterator[str]:
    """Each key of the TOML; the options of recipes are the arguments above."""
    for section, field in RunConfig.model_fields.items():
        kind = section_of(field.annotation)
        yield f"[{section}]" + (" required" if field.is_required() else "")
        for key, inner in kind.model_fields.items() if kind is not None else ():
            default = "" if inner.is_required() else f" = {inner.get_default(call_default_factory=True)!r}"
            yield f"    {key}{default}"


def run_record() -> Iterator[str]:
    yield f"schema version {record.SCHEMA_VERSION}"
    yield from record_lines(record.RunRecord, "    ", set())


def record_lines(kind: type[BaseModel], indent: str, seen: set[type]) -> Iterator[str]:
    """The fields with the types that their source says; a record inside is told where it is met first."""
    for name, field in kind.model_fields.items():
        annotation = source_of(kind, name)
        yield f"{indent}{field.alias or name}: {annotation}{' required' if field.is_required() else ''}"
        for inner in records_in(field.annotation):
            if inner not in seen:
                seen.add(inner)
                yield from record_lines(inner, indent + "    ", seen)


def source_of(kind: type, name: str) -> object:
    """The annotation of a field, as the class says it that has it."""
    return next(own[name] for base in kind.__mro__ if name in (own := inspect.get_annotations(base)))


def records_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from records_in(inner)


def file_formats() -> Iterator[str]:
    """What a run leaves, and the keys of ``model.json``."""
    yield f"{checkpoint.TENSORS}, {RECORD_FILE}, {CONFIG_FILE}"
    yield f"{checkpoint.DESCRIPTION} of format {checkpoint_description.FORMAT}"
    yield from record_lines(checkpoint_description.Description, "    ", set())


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        SNAPSHOT.write_text(public_api(), encoding="utf-8")
    else:
        sys.stdout.write(public_api())
