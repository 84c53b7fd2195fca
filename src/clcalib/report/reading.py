"""Reading what a run left as JSON: a limited file, checked field by field, and an error that names both."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from clcalib.errors import CheckpointError, NumericalError, UnusableFileError
from clcalib.reading.content import MOST_JSON, read_json

Model = TypeVar("Model", bound=BaseModel)


def read_model(path: str | Path, kind: type[Model], name: str, *, remedy: str, most: int = MOST_JSON) -> Model:
    """The value of ``kind`` that a JSON file holds.

    Args:
        path: of the file.
        kind: the type that it is checked against.
        name: what an error calls it, with its article.
        remedy: what to do about a file that is none.
        most: bytes that are read.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is none; the message names the field.
        NumericalError: a number in it is not finite.
    """
    path = Path(path)
    try:
        return kind.model_validate(read_json(path, most))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record"
        raise CheckpointError(f"{path}: not {name}: {field}: {first['msg']}; {remedy}") from None
    except NumericalError as error:
        raise NumericalError(f"{path}: {error}") from None
    except UnusableFileError as error:
        raise CheckpointError(f"{error}; {remedy}") from None
