"""What calls return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from tcm_sync._numbers import plural, shown
from tcm_sync._secrets import hide
from tcm_sync._tables import Picture, html_table
from tcm_sync._tensors.columns import columns_of
from tcm_sync._tensors.pictures import picture_of
from tcm_sync._tensors.summary import first_values, range_of
from tcm_sync._tracebacks import shortened
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ConfigError, InputError, ProtocolError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

#: How many jobs, waiting and running ones together, the executors of a manager accept as it is shipped.
_SHIPPED_SIZES = {"info": 100, "management": 50, "inference": 200}

_MAX_SHOWN = 20  # outputs


def _quoted(name: str | None) -> str:
    """Return a name that the manager chose, as a line shows it."""
    return "None" if name is None else f"'{quote(name)}'"


class InferResult(Mapping[str, "np.ndarray[Any, Any]"]):
    """The outputs of one inference: a read-only mapping of names to arrays.

    The arrays are the caller's own: writable, sharing no memory with anything else. Calls return it; for a
    mock, ``InferResult("digits", {"label": [7]})`` makes one.

    Parameters
    ----------
    model_name : str
        The model that answered.
    arrays : mapping of str to array_like
        The outputs by name. Without `raw` they are copied into arrays; lists get the dtypes that those of a
        reply get.
    raw : bytes, optional
        The outputs as the manager sent them, JSON text; left out, it is empty.
    attempts : int
        How many attempts it took that count (see `RetryPolicy`), the successful one included.
    elapsed : float
        Seconds from the start of the call to its end.

    Raises
    ------
    InputError
        Without `raw`, if `arrays` is not a mapping from names to array-likes.
    """

    __slots__ = ("_arrays", "_raw", "attempts", "elapsed", "model_name")

    def __init__(
        self,
        model_name: str,
        arrays: Mapping[str, npt.ArrayLike],
        raw: bytes | None = None,
        attempts: int = 1,
        elapsed: float = 0.0,
    ) -> None:
        self.model_name = model_name
        self.attempts = attempts
        self.elapsed = elapsed
        # What the client makes has raw, and arrays that need neither a check nor a copy.
        self._arrays: dict[str, np.ndarray[Any, Any]]
        self._arrays = _copied(arrays) if raw is None else arrays  # type: ignore[assignment]
        self._raw = b"" if raw is None else raw

    @property
    def raw(self) -> bytes:
        """The outputs as the manager sent them, JSON text."""
        return bytes(self._raw)

    def as_numpy(self, name: str) -> np.ndarray[Any, Any]:
        """Return the output called `name`.

        Parameters
        ----------
        name : str
            The output's name in the model.

        Returns
        -------
        ndarray
            The array; writable, and the caller's own.

        Raises
        ------
        KeyError
            There is no such output; the error lists those there are.
        """
        return self[name]

    def tolist(self) -> dict[str, Any]:
        """Return the outputs as a dict of nested lists, such as a JSON response takes.

        Returns
        -------
        dict of str to list
            The outputs by name; int, float, bool and str in lists, or alone for an output without axes.
        """
        return {name: array.tolist() for name, array in self._arrays.items()}

    def to_pandas(self) -> pd.DataFrame:
        """Return the outputs as the columns of a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            An output of shape [rows] or [rows, 1] is a column of its name; one of [rows, n] is ``NAME_0`` to
            ``NAME_{n-1}``.

        Raises
        ------
        ConfigError
            pandas is not installed.
        InputError
            The outputs are no table: one has another number of dimensions, or of rows.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("to_pandas() needs pandas: pip install pandas") from None
        return pd.DataFrame(columns_of(self._arrays))

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse to be one array, of which numpy and pandas would make a list of the names."""
        raise InputError(
            "a result is a mapping of arrays and not one array: take an output by its name, "
            'result["NAME"], or all as a table: result.to_pandas()'
        )

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        try:
            return self._arrays[name]
        except (KeyError, TypeError):  # an output is hashable, a list of them is not
            there = ", ".join(map(_quoted, list(self._arrays)[:_MAX_SHOWN])) or "none"
            model = _quoted(self.model_name)
            how = "" if isinstance(name, str) else "; take an output by its name, which is a str"
            raise shortened(
                KeyError(hide(f"no output {shown(name)}; model {model} returned {there}{how}"))
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    # Two results are not compared: their arrays have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        first = list(islice(self._arrays.items(), _MAX_SHOWN))
        outputs = ", ".join(f"{quote(name)}: {a.dtype}{list(a.shape)}" for name, a in first)
        more = ", …" if len(first) < len(self._arrays) else ""
        return f"<InferResult {_quoted(self.model_name)} {{{outputs}{more}}} {self.elapsed * 1e3:.3g} ms>"

    def _repr_html_(self) -> str:
        """Show the outputs as a table in a notebook, those that look like images as pictures."""
        title = f"InferResult {_quoted(self.model_name)}, {self.elapsed * 1e3:.3g} ms"
        if self.attempts > 1:
            title += f", {self.attempts} attempts"
        rows: list[tuple[object, ...]] = [
            (
                name,
                "text" if array.dtype.kind in "OU" else array.dtype,
                list(array.shape),
                _picture_or_values(name, array),
                range_of(array),
            )
            for name, array in islice(self._arrays.items(), _MAX_SHOWN)
        ]
        if more := len(self._arrays) - len(rows):
            rows.append((f"… {more} more", "", "", "", ""))
        return html_table(title, ("output", "dtype", "shape", "values", "range"), rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return InferResult, (self.model_name, self._arrays, self.raw, self.attempts, self.elapsed)


def _picture_or_values(name: str, array: np.ndarray[Any, Any]) -> Picture | str:
    uri = picture_of(array)
    return first_values(array) if uri is None else Picture(uri, name)


def _copied(outputs: object) -> dict[str, np.ndarray[Any, Any]]:
    """Copy outputs that were written by hand into arrays."""
    if not isinstance(outputs, Mapping):
        raise InputError(f"the outputs must be a mapping of names to arrays, not {type(outputs).__name__}")
    arrays = {}
    for name, values in outputs.items():
        if not isinstance(name, str):
            raise InputError(f"the name of an output must be a str, not {shown(name)}")
        try:
            array = np.array(values)
        except ValueError as error:  # ragged lists
            raise InputError(f"output {name!r} cannot be made an array: {error}") from None
        is_text = array.dtype.kind == "U" and not isinstance(values, np.ndarray)
        arrays[name] = array.astype(object) if is_text else array  # as text of a reply is
    return arrays


@dataclass(frozen=True, repr=False)
class QueueStats:
    """How many users and jobs a manager has (docs/wire.rst, "Info").

    Users are uuids that sent such work and are not forgotten yet, closed connections included. A job that
    runs shows in one count alone: ``executor_*_available`` is lower by one while it waits for a worker and
    while it runs. An idle manager has 0 in ``*_total_queued`` and ``executor_*_pending``, and its full size
    in ``executor_*_available``; `unfinished` does that sum.

    Attributes
    ----------
    info_users : int
    management_users : int
    inference_users : int
    total_users : int
    total_queued, info_total_queued, management_total_queued, inference_total_queued : int
        Jobs that have not been passed on to the workers. They are within some 10 ms, so this is nearly
        always 0.
    executor_info_pending, executor_management_pending, executor_inference_pending : int
        Jobs that wait for a worker. **Those that run are not counted.**
    executor_info_available, executor_management_available, executor_inference_available : int
        How many more jobs are accepted. As shipped, an idle manager has 100, 50 and 200 (settings of the
        manager); each job that waits or runs takes one, and one that hangs does not give it back.
    extra : mapping
        Further fields of the answer.
    """

    info_users: int
    management_users: int
    inference_users: int
    total_users: int
    total_queued: int
    info_total_queued: int
    management_total_queued: int
    inference_total_queued: int
    executor_info_pending: int
    executor_management_pending: int
    executor_inference_pending: int
    executor_info_available: int
    executor_management_available: int
    executor_inference_available: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> QueueStats:
        """Read the data of the answer.

        Parameters
        ----------
        data : mapping
            The data of the answer.

        Raises
        ------
        ProtocolError
            A count is missing, or is none.
        """
        names = [each.name for each in fields(cls) if each.name != "extra"]
        for name in names:
            count = data.get(name)
            if isinstance(count, bool) or not isinstance(count, int):
                found = f"is of type {type(count).__name__}" if name in data else "is missing"
                raise ProtocolError(f"queue_stats: {name} {found}; info('queue_stats') returns what there is")
        extra = {name: value for name, value in data.items() if name not in names}
        return cls(**{name: data[name] for name in names}, extra=extra)

    def unfinished(self, kind: Literal["info", "management", "inference"], *, size: int | None = None) -> int:
        """Count the jobs of one kind that are queued, wait for a worker, or run.

        The manager does not report how many jobs run. They follow from the size of its executor, which it
        does not report either.

        Parameters
        ----------
        kind : str
            ``"management"``, ``"inference"`` or ``"info"``.
        size : int, optional
            How many jobs of this kind the manager's executor accepts, waiting and running ones together.
            Left out, the size that managers are shipped with: 50, 200 or 100. **If the operator has changed
            it, pass the new size**, or the result is wrong: an idle manager shows it as
            ``executor_*_available``.

        Returns
        -------
        int
            Jobs of this kind that are not finished.

        Raises
        ------
        InputError
            There is no such kind, or more jobs are accepted than `size` allows: the size is wrong.
        """
        if kind not in _SHIPPED_SIZES:
            raise InputError(f"kind must be one of {', '.join(_SHIPPED_SIZES)}, not {kind!r:.80}")
        size = _SHIPPED_SIZES[kind] if size is None else size
        available: int = getattr(self, f"executor_{kind}_available")
        if available > size:
            raise InputError(
                f"the manager accepts {available} more {kind} jobs, so its executor is larger than {size}: "
                f"pass size=, the value of executor_{kind}_available on an idle manager"
            )
        queued: int = getattr(self, f"{kind}_total_queued")
        return queued + size - available

    def _repr_html_(self) -> str:
        """Show the jobs of each kind as a table in a notebook."""
        names = ("{}_users", "{}_total_queued", "executor_{}_pending", "executor_{}_available")
        rows = [(kind, *(getattr(self, name.format(kind)) for name in names)) for kind in _SHIPPED_SIZES]
        title = f"QueueStats of {plural(self.total_users, 'user')}"
        return html_table(title, ("jobs", "users", "queued", "wait for a worker", "more accepted"), rows)

    def __repr__(self) -> str:
        kinds = ("info", "management", "inference")
        pending = sum(getattr(self, f"executor_{kind}_pending") for kind in kinds)
        available = "/".join(str(getattr(self, f"executor_{kind}_available")) for kind in kinds)
        return (
            f"<QueueStats {plural(self.total_users, 'user')}, {self.total_queued} queued, "
            f"{pending} wait for a worker, {available} more accepted (info/management/inference)>"
        )


@dataclass(frozen=True)
class ManagementResult:
    """What a management job returned.

    Attributes
    ----------
    action : str
        What was asked for.
    data : object
        The data of the answer, as JSON has it: for ``"creation"`` an object, for ``"create_vm"`` the list
        ``[vm_ip, vm_id]``, for ``"delete_vm"`` None.
    attempts : int
        How many attempts it took that count, the successful one included.
    elapsed : float
        Seconds from the start of the call to its end.
    parts : mapping of str to str
        Of a deletion, the outcome for its ``"server"``, ``"container"`` and ``"vm"``: each was ``"deleted"``,
        or was ``"missing"`` (see `TcmClient.delete`). Empty for other jobs.
    """

    action: str
    data: Any
    attempts: int
    elapsed: float
    parts: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))
        return hide(f"{type(self).__name__}({shown})")

    def _repr_html_(self) -> str:
        """Show what the job returned as a table in a notebook."""
        title = f"ManagementResult {self.action!r}, {self.elapsed:.3g} s"
        if self.attempts > 1:
            title += f", {self.attempts} attempts"
        named = self.data.items() if isinstance(self.data, Mapping) else [("data", self.data)]
        return html_table(title, (), [*named, *self.parts.items()])
