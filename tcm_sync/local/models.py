"""Load the models that a `LocalManager` can run: Python callables and ONNX models."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tcm_sync._arguments import check_text, check_whole
from tcm_sync._numbers import as_number, shown
from tcm_sync.errors import ERROR_CODES, ConfigError
from tcm_sync.local.loaded_model import LoadedModel, ModelFunction
from tcm_sync.local.onnx_models import load_onnx

Model = str | os.PathLike[str] | bytes | ModelFunction


class ModelFailure(Exception):
    """Raised by a model in Python to fail its request with an error code of its choice.

    Parameters
    ----------
    code : str
        The code, such as ``"TRITON_OVERLOADED"`` (docs/wire.rst, "Error codes").
    message : str
        The reason, which becomes the end of the reply's message.
    retriable : bool, optional
        Whether the reply says that the request may be repeated. The default is that of the code in
        `tcm_sync.errors.ERROR_CODES`, and False for other codes.
    retry_after_seconds : float, optional
        Seconds to wait before a retry, sent in the reply if given.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retriable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        if not isinstance(code, str) or not code:
            raise ConfigError(
                f"the code of a ModelFailure must be a text that is not empty, not {shown(code)}"
            )
        self.code = code
        if retriable is None:
            retriable = code in ERROR_CODES and ERROR_CODES[code].retriable
        self.retriable = bool(retriable)
        self.retry_after_seconds = (
            None if retry_after_seconds is None else _checked_pause(retry_after_seconds)
        )


def _checked_pause(seconds: object) -> float:
    number = as_number(seconds)
    if number is None or not 0 <= number < math.inf:
        raise ConfigError(
            f"the retry_after_seconds of a ModelFailure must be a number of at least 0, not {shown(seconds)}"
        )
    return number


def load_models(
    models: Mapping[str, Model] | None, max_batch_sizes: Mapping[str, int] | None
) -> dict[str, LoadedModel]:
    """Make the models of a manager ready to run.

    Parameters
    ----------
    models : mapping of str to model, optional
        As `load_model` takes them, by name.
    max_batch_sizes : mapping of str to int, optional
        Those of some of the models.

    Raises
    ------
    ModelFileError
        An ONNX model cannot be read.
    ConfigError
        One of the two is something else, or there is no model of a name.
    """
    checked = _checked_models({} if models is None else models)
    most = _checked_batch_sizes({} if max_batch_sizes is None else max_batch_sizes, checked)
    return {name: load_model(name, model, most.get(name)) for name, model in checked.items()}


def _checked_models(models: object) -> dict[str, Model]:
    if not isinstance(models, Mapping):
        raise ConfigError(f"models must map names to models, not {type(models).__name__}")
    return {check_text("models: a name", name): model for name, model in models.items()}


def _checked_batch_sizes(most: object, models: Mapping[str, Model]) -> dict[str, int]:
    if not isinstance(most, Mapping):
        raise ConfigError(f"max_batch_sizes must map names of models to sizes, not {type(most).__name__}")
    for name in most:
        if name not in models:
            raise ConfigError(
                f"max_batch_sizes names {shown(name)}, which is none of the models {sorted(models)}"
            )
    return {name: check_whole(f"max_batch_sizes: that of {name!r}", size, 0) for name, size in most.items()}


def load_model(name: str, model: Model, max_batch_size: int | None = None) -> LoadedModel:
    """Make a model ready to run.

    Parameters
    ----------
    name : str
        Its name in requests.
    model : str, path, bytes or callable
        An ONNX file, its contents, or a callable from a dict of arrays to a mapping of array-likes or to an
        iterator of chunks.
    max_batch_size : int, optional
        The default is that of the file's ``config.pbtxt``, if it is in a model repository of Triton's.

    Raises
    ------
    ModelFileError
        If the ONNX model cannot be read.
    ConfigError
        If `model` is something else.
    """
    if isinstance(model, str | bytes | os.PathLike):
        loaded = load_onnx(name, model)
        if max_batch_size is None and not isinstance(model, bytes):
            max_batch_size = _configured_batch_size(os.fspath(model))
    elif callable(model):
        functions = model, getattr(type(model), "__call__", None)  # noqa: B004 - not whether there is one
        loaded = LoadedModel(name, model, decoupled=any(map(inspect.isgeneratorfunction, functions)))
    else:
        raise ConfigError(
            f"model {name!r} must be the path of an ONNX file, its bytes, or a callable, "
            f"not {type(model).__name__}"
        )
    return replace(loaded, max_batch_size=max_batch_size)


def _configured_batch_size(file: str) -> int | None:
    """Read ``max_batch_size`` of the configuration that Triton has for ``NAME/VERSION/FILE``, if any."""
    version = Path(file).absolute().parent
    config = version.parent / "config.pbtxt"
    if not version.name.isdecimal() or not config.is_file():
        return None
    found = re.search(r"^[ \t]*max_batch_size\s*:\s*(\d+)", config.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0  # which is what leaving it out means
