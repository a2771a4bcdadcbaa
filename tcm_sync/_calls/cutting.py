"""Where a long batch is cut: which rows go in a message together, through shared memory or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tcm_sync._calls.inference import encode_as_json, obstacle
from tcm_sync._calls.shm_inference import Shareable, with_obstacle
from tcm_sync._shm.policy import is_worth_sharing
from tcm_sync._tensors import minimum_json_bytes, rows_of_a_message
from tcm_sync._wire.encode import size_of
from tcm_sync.errors import InputError, MessageTooLargeError

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._tensors import ModelSignature, Tensor
    from tcm_sync._wire.encode import Pieces
    from tcm_sync.errors import TcmError

Cut = tuple[int, int, "Pieces | Shareable"]  # from which row, to which, and what is sent of them

_SAMPLE = 64  # rows whose text shows how many fit a message
# Bytes of a reply for a byte of input: a number of 4 bytes has up to 20 of text, in several outputs.
_TEXT_BYTES = 8
_FULL = 0.9  # how full a message is meant to be: rows differ in their text
# Each input of a message has its own segment. So many of four messages at a time are all kept for later ones;
# with 64 inputs shared memory is slower than JSON.
_MAX_SHARED_INPUTS = 16


class Job:
    """A batch that is cut: its rows, what every message of it has, and which of them may have run."""

    def __init__(
        self,
        options: CallOptions,
        take: Callable[[int, int], tuple[Tensor, ...]],
        length: int,
        row_bytes: int,
        rows: int | None,
        signature: ModelSignature | None,
    ) -> None:
        self.options = options
        self.take = take  # the rows from one number up to another, from any thread
        self.length = length
        fixed = None if signature is None else rows_of_a_message(signature)
        self.is_fixed = fixed is not None  # whether the model takes no other number of rows
        self.rows = rows if fixed is None else _checked_fixed(fixed, rows, length)  # of each message, if set
        self.most = None if signature is None else signature.max_batch_size
        self.target = (options.route, options.model_name)
        self.row_bytes = max(1, row_bytes)
        self.shortest_text: int | None = None  # bytes that a row has at least as JSON, once that was needed
        self.obstacle: str | None = None  # why the rows go as JSON from now on
        self.has_many_inputs = False  # more than are worth sharing, once a message was looked at
        self.running: list[int] = []  # an entry for each message that runs, or has run

    def stops_sharing(self, prepared: Pieces | Shareable, error: TcmError) -> bool:
        """Whether rows could not be shared and were too many for JSON; then the rest goes as JSON too.

        That was found before they were sent: there is a limit, and no connection. After anything else the
        rows may have run, and only the retry policy decides whether they are sent again.
        """
        stops = (
            isinstance(prepared, Shareable)
            and isinstance(error, MessageTooLargeError)
            and error.uuid is None
            and error.limit is not None
            and self.options.transport == "auto"
            and self.rows is None
        )
        if stops:
            self.obstacle = self.obstacle or "a message before was declined"
        return stops


def cuts(core: Core, job: Job, start: int, stop: int, most: int | None) -> Iterator[Cut]:
    """Cut some rows into messages that are not too large, of at most so many rows each.

    Raises
    ------
    InputError
        They cannot go through shared memory, as the call demands.
    MessageTooLargeError
        A single row is too large, or so many as the caller wants in a message.
    """
    fitting: int | None = None  # how many rows fit a message as JSON, once that is known
    while start < stop:
        end = start + _most_rows(core, job, stop - start, most)
        shared = _shared_cut(core, job, start, end)
        if shared is not None:
            yield shared
            start = shared[1]
            continue
        if fitting is None and job.rows is None and end - start > _SAMPLE:
            fitting = _fitting(core, job, start, start + _SAMPLE)
        start, end, payload = _json_cut(core, job, start, end, fitting)
        yield start, end, payload
        fitting = _likely_rows(core, end - start, payload)
        start = end


def _most_rows(core: Core, job: Job, left: int, most: int | None) -> int:
    """Return how many of the rows that are left the next message may have."""
    if job.is_fixed and job.rows is not None:
        return job.rows
    bounds = (left, most, job.rows, job.most, core.row_limits.rows(job.target, job.row_bytes))
    return min(bound for bound in bounds if bound is not None)


def still_fits(core: Core, job: Job, prepared: Pieces | Shareable) -> bool:
    """Whether a message can be sent as it was prepared, after what was learned meanwhile."""
    if isinstance(prepared, Shareable):
        return job.obstacle is None
    return size_of(prepared) <= _room(core)


def name_rows(error: TcmError, start: int, stop: int) -> None:
    """Begin the message of an error with the rows that it is about."""
    error.args = (f"rows {start:,} to {stop - 1:,}: {error.message}",)


def _checked_fixed(fixed: int, rows: int | None, length: int) -> int:
    """Return how many rows the model takes in each message, or raise an InputError if that cannot be."""
    if rows not in (None, fixed):
        raise InputError(f"rows is {rows}, and the model takes exactly {fixed} at a time")
    if length % fixed:
        whole = -(-length // fixed) * fixed
        raise InputError(
            f"the batch has {length:,} rows, and the model takes exactly {fixed} at a time: add "
            f"{whole - length} of any values, and drop their outputs"
        )
    return fixed


def _shared_cut(core: Core, job: Job, start: int, stop: int) -> tuple[int, int, Shareable] | None:
    """Return the first rows, as many as go through shared memory together; None if they go as JSON."""
    options = job.options
    if options.transport == "json" or job.obstacle is not None or job.has_many_inputs:
        return None
    if job.rows is None:
        stop = min(stop, start + _shared_rows(core, job))
    tensors = job.take(start, stop)
    if options.transport == "auto":
        job.has_many_inputs = len(tensors) > _MAX_SHARED_INPUTS
        if job.has_many_inputs or not is_worth_sharing(tensors):
            return None
    why = obstacle(core, options, tensors)
    if why is None and options.transport == "auto" and (connection := core.any_connection()) is not None:
        why = core.shm.obstacle_on(connection, options.transport)
    if why is None:
        return start, stop, Shareable(tensors)
    if options.transport == "shm":
        raise InputError(f"transport='shm' cannot be: {why}")
    core.counts.declined(why)
    job.obstacle = why
    return None


def _shared_rows(core: Core, job: Job) -> int:
    """Return how many rows go through shared memory together: as many as fit as JSON in the best case.

    So there are never more messages than with JSON.
    """
    if job.shortest_text is None:
        job.shortest_text = max(1, minimum_json_bytes(job.take(0, 1)))
    fitting = core.message_limit() // job.shortest_text
    return max(1, min(fitting, core.settings.max_reply_bytes // _TEXT_BYTES // job.row_bytes))


def _json_cut(core: Core, job: Job, start: int, stop: int, fitting: int | None) -> tuple[int, int, Pieces]:
    """Return the first rows as JSON, as many as fit a message."""
    end = stop if fitting is None else min(stop, start + fitting)
    while True:
        try:
            return start, end, encode_as_json(core, job.options, job.take(start, end))
        except MessageTooLargeError as error:
            if job.rows is None and end - start > 1:
                end = start + _fewer_rows(core, end - start, error)
                continue
            if job.obstacle is not None:
                with_obstacle(error, job.obstacle)
            name_rows(error, start, end)
            raise


def _fitting(core: Core, job: Job, start: int, stop: int) -> int:
    """Return how many rows are likely to fit a message, judged by a few of them."""
    try:
        return _likely_rows(core, stop - start, encode_as_json(core, job.options, job.take(start, stop)))
    except MessageTooLargeError as error:
        return _fewer_rows(core, stop - start, error)


def _likely_rows(core: Core, rows: int, payload: Pieces) -> int:
    return max(1, int(rows * _room(core) * _FULL / size_of(payload)))


def _fewer_rows(core: Core, rows: int, error: MessageTooLargeError) -> int:
    room = _room(core)
    return max(1, int(rows * min(0.5, room / (error.size or room))))


def _room(core: Core) -> int:
    """Return how many bytes of payload a message may have."""
    return core.message_limit() - core.messages.envelope_bytes("inference")
