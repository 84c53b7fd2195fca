"""The user's float model: a callable or a library's network named in the configuration, and its weights.

Weights in a file come from the one loader, ``reading``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from clcalib import named_models
from clcalib.config_sections import ModelSection
from clcalib.errors import (
    ArgumentError,
    CheckpointError,
    CheckpointLayoutWarning,
    UntrainedNetworkWarning,
    first_of,
    misfits,
)
from clcalib.named_models import is_named
from clcalib.reading.state_dict import PREFIXES, most_weight_bytes, read_state_dict

# Their functions carry out what stands in a file that an argument names.
_LOADERS = ("torch.serialization", "torch.hub", "torch.jit", "torch.export", "torch.package", "torch.utils")


def load_model(section: ModelSection) -> nn.Module:
    """Build the model, load its weights and set it to eval mode.

    Raises:
        ArgumentError: the entry cannot be imported, fails, or gives something else than a module.
        CheckpointError: the weights cannot be read or do not fit the model.
    """
    model, _ = _built(section)
    return model


def load_trained_model(section: ModelSection) -> nn.Module:
    """The same for a network that is to be of use.

    Warns:
        UntrainedNetworkWarning: no weights were given, and what the entry builds has random ones.
    """
    model, is_random = _built(section)
    if section.weights is None and (is_named(section.entry) or (is_random and _comes_out_otherwise(section, model))):
        ways = "--weights FILE, or --pretrained to download them" if is_named(section.entry) else "--weights FILE"
        warnings.warn(
            f"{section.entry} has random weights, so that what is measured on it says nothing about a trained network; "
            f"give it weights by {ways}",
            UntrainedNetworkWarning,
            stacklevel=2,
        )
    return model


def _built(section: ModelSection) -> tuple[nn.Module, bool]:
    """The network in eval mode, and whether random numbers were drawn for it."""
    is_pretrained = section.weights is not None and named_models.is_pretrained(section.weights)
    with torch.random.fork_rng(devices=[]):  # the caller's generator does not pay for weights that are replaced
        before = torch.get_rng_state()
        if is_named(section.entry):
            model = named_models.build(section.entry, section.arguments, is_pretrained=is_pretrained)
        else:
            model = _build(section.entry, section.arguments)
        has_drawn = not torch.equal(before, torch.get_rng_state())
    if section.weights is not None and not is_pretrained:
        load_weights(model, section.weights)
    return model.eval(), has_drawn


def _comes_out_otherwise(section: ModelSection, model: nn.Module) -> bool:
    """Whether the entry builds other weights from other random numbers, and so loads none by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed() ^ 1)
        try:
            other = _build(section.entry, section.arguments).state_dict()
        except ArgumentError:  # it can be called once only
            return False
    return any(not torch.equal(tensor, other.get(name, tensor)) for name, tensor in model.state_dict().items())


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``path``, a .safetensors file or a state dict of ``torch.save``, into ``model``; all must fit.

    Raises:
        CheckpointError: the file is damaged or much larger than the model, holds other objects than tensors, or does
            not fit; nothing has been loaded then.

    Warns:
        CheckpointLayoutWarning: the state dict lay under a key such as "state_dict", or a prefix such as "module." was
            taken from its names.
    """
    state = model.state_dict()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    weights, wrapper = read_state_dict(path, most_weight_bytes(needed))
    prefix = _foreign_prefix(state, weights)
    weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    # Batch norm counts its batches for training only, and converters often leave these counters out.
    own = {name: tensor for name, tensor in state.items() if name in weights or not _is_counter(name)}
    problems = misfits(*({name: tensor.shape for name, tensor in table.items()} for table in (own, weights)))
    if problems:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    _tell_layout(path, wrapper, prefix)
    model.load_state_dict(weights, strict=False)  # what may be missing is only the counters


def _foreign_prefix(own: Collection[str], weights: Collection[str]) -> str:
    """What of the known prefixes stands in front of every name in the file, as far as no name fits the model yet."""
    prefix = ""
    while weights and not any(name.removeprefix(prefix) in own for name in weights):
        more = next((each for each in PREFIXES if all(name.startswith(prefix + each) for name in weights)), None)
        if more is None:
            break
        prefix += more
    return prefix


def _tell_layout(path: Path, wrapper: str | None, prefix: str) -> None:
    told = [f"the weights are those under {wrapper!r}"] if wrapper is not None else []
    told += [f"{prefix!r} was taken from the front of their names"] if prefix else []
    if told:
        warnings.warn(f"{path}: {', and '.join(told)}", CheckpointLayoutWarning, stacklevel=3)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _build(entry: str, arguments: Mapping[str, Any]) -> nn.Module:
    place, _, name = entry.rpartition(":")
    _check_builds(place, entry)
    target: Any = _import(place)
    for part in name.split("."):
        if not hasattr(target, part):
            raise ArgumentError("model.entry", f"a name in {place}", part, _public_callables(target))
        target = getattr(target, part)
    if not callable(target):
        raise ArgumentError("model.entry", "a callable that returns a torch.nn.Module", type(target).__name__)
    if inspect.isroutine(target) or inspect.isclass(target):
        _check_builds(getattr(target, "__module__", None) or "builtins", entry)
    try:
        model = target if isinstance(target, nn.Module) else target(**arguments)
    except Exception as error:  # whatever the user's own code raises
        raise ArgumentError("model.entry", f"{entry} to return a module", _named(error)) from error
    if not isinstance(model, nn.Module):
        raise ArgumentError("model.entry", f"{entry} to return a torch.nn.Module", type(model).__name__)
    return model


def _check_builds(module: str, entry: str) -> None:
    """Raise where an entry is of the standard library, or of what loads files: nothing there builds a network."""
    is_standard = not module.endswith(".py") and module.partition(".")[0] in sys.stdlib_module_names
    if is_standard or any(module == each or module.startswith(f"{each}.") for each in _LOADERS):
        remedy = "write a function that builds it in a file of your own"
        raise ArgumentError("model.entry", "a callable that builds a network", f"{entry}, of {module}", remedy)


def _import(place: str) -> ModuleType:
    is_file = place.endswith(".py")
    try:
        if is_file:
            return _import_file(Path(place).resolve())
        with _importable(Path.cwd()):
            return importlib.import_module(place)
    except Exception as error:  # whatever the user's own code raises
        kind = "a Python file" if is_file else "a module"
        raise ArgumentError("model.entry", f"{kind} that can be imported", f"{place} ({_named(error)})") from error


def _import_file(path: Path) -> ModuleType:
    # The name is private to clcalib and to this very file, so nothing that is importable elsewhere is shadowed.
    name = f"_clcalib_entry_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look a class's module up by name
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the code in ``folder`` import its neighbours, as it can when it is started as a script."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _public_callables(target: Any) -> str:
    own = [name for name, value in vars(target).items() if not name.startswith("_") and callable(value)]
    return f"it has {first_of(own)}" if own else ""


def _named(error: BaseException) -> str:
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
