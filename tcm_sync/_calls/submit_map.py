"""Many inferences at once: futures, and maps over inputs, which may be endless."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextvars import copy_context
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_choice, check_flag, check_whole, is_iterable
from tcm_sync._calls.inference import encode, send_watched, watch_of
from tcm_sync._calls.options import OnError
from tcm_sync._calls.progress import Progress
from tcm_sync._deadline import Deadline
from tcm_sync._futures import Future
from tcm_sync._process import notice_fork
from tcm_sync._tensors import refuse_frame
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._waiting import MAX_STEP
from tcm_sync.errors import InputError, TcmError
from tcm_sync.results import InferResult

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._calls.worker_threads import Workers

_MAX_CONCURRENCY = 2**31  # which no number of threads reaches, and islice takes
_AHEAD = 3  # inputs that are read ahead for each call under way
_STATES = {GEN_CREATED: "not begun: list(...) or a for loop begins it", GEN_CLOSED: "ended"}

Task = Callable[[], Any] | TcmError  # the work, or the reason why it cannot be done


def submit(core: Core, options: CallOptions, inputs: object) -> Future[InferResult]:
    """Run a model in the background."""
    notice_fork()
    with shortened_errors:
        return core.background().submit(_task(core, options, inputs))


class MapResults(Iterator[Any]):
    """What `map` returns: nothing is sent before the first result is asked for."""

    def __init__(self, model_name: str, results: Generator[Any, None, None]) -> None:
        self._model_name = model_name
        self._results = results

    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """End it; what has not begun is cancelled."""
        self._results.close()

    def __repr__(self) -> str:
        state = _STATES.get(getgeneratorstate(self._results), "running")
        return f"<results of map over {self._model_name!r}, {state}>"


def map_inputs(
    core: Core,
    options: CallOptions,
    many_inputs: Iterable[object],
    *,
    concurrency: int | None,
    ordered: bool,
    progress: bool,
    on_error: OnError,
) -> Iterator[Any]:
    """Run a model on one input after another, several at a time."""
    notice_fork()
    check_choice("on_error", on_error, ("raise", "return"))
    ordered = check_flag("ordered", ordered)
    refuse_frame(many_inputs)
    if not is_iterable(many_inputs):
        raise InputError(f"many_inputs must be an iterable of inputs, not {type(many_inputs).__name__}")
    most = core.settings.pool_size if concurrency is None else concurrency
    most = check_whole("concurrency", most, kind=InputError)
    total = len(many_inputs) if isinstance(many_inputs, Sized) else None
    shown = Progress(options.model_name, shown=progress, unit="inputs", total=total)
    core.begin()
    tasks = (_task_or_failure(core, options, inputs) for inputs in many_inputs)
    outcomes = outcomes_of(tasks, core.new_workers(most), most, ordered=ordered)
    results = _yielded(outcomes, shown, ordered=ordered, raising=on_error == "raise")
    return MapResults(options.model_name, results)


def _task(core: Core, options: CallOptions, inputs: object) -> Callable[[], InferResult]:
    """Encode the inputs, and return the function that sends them when it is their turn."""
    watch = watch_of(core, options, inputs)
    prepared = encode(core, options, inputs, later=True)
    if watch is not None:
        watch.enter(None)  # until its turn has come
    context = copy_context()  # the caller's, for log filters and listeners
    return lambda: context.run(send_watched, core, options, prepared, Deadline(options.timeout), watch)


def _task_or_failure(
    core: Core, options: CallOptions, inputs: object
) -> Callable[[], InferResult] | TcmError:
    try:
        return _task(core, options, inputs)
    except TcmError as error:
        return error


def outcomes_of(
    tasks: Iterator[Task], workers: Workers, most: int, *, ordered: bool = True
) -> Generator[tuple[int, Any], None, None]:
    """Do tasks several at a time, and yield each one's index and outcome; failures are outcomes.

    They come in the order of the tasks, or each once it is there.
    """
    ahead = min(most, _MAX_CONCURRENCY) * _AHEAD
    counter = itertools.count()
    waiting: dict[int, Future[Any]] = {}  # by their indexes, the oldest first
    done: SimpleQueue[int] = SimpleQueue()  # not of futures, whose callbacks have the queue: no cycle
    try:
        while True:
            workers.check_process()
            for future in _begun(tasks, workers, ahead - len(waiting)):
                index = next(counter)
                waiting[index] = future
                if not ordered:
                    future.add_done_callback(lambda _, index=index: done.put(index))  # type: ignore[misc]
                del future
            if not waiting:
                return
            index = next(iter(waiting)) if ordered else _next_of(done, workers)
            yield index, _outcome(waiting.pop(index), workers)
    finally:
        try:
            _stop(workers)
        except BaseException:  # a second interrupt
            _stop(workers)
            raise


def _begun(tasks: Iterator[Task], workers: Workers, room: int) -> list[Future[Any]]:
    """Give the workers as many tasks as there is room for; one that failed already has failed."""
    return [
        _failed(task) if isinstance(task, TcmError) else workers.submit(task) for task in islice(tasks, room)
    ]


def _failed(error: TcmError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _next_of(done: SimpleQueue[int], workers: Workers) -> int:
    while True:
        try:
            return done.get(timeout=MAX_STEP)
        except Empty:
            workers.check_process()  # a signal handler may have forked


def _outcome(future: Future[Any], workers: Workers) -> Any:
    while not future.wait(MAX_STEP):
        workers.check_process()
    error = future.exception()  # not raised: its traceback would have this frame, and the future in it
    return error if isinstance(error, TcmError) else future.result()


def _stop(workers: Workers) -> None:
    """Do no more tasks."""
    if not workers.is_inherited():  # after a fork another thread may have held any lock
        workers.close()


def _yielded(
    outcomes: Generator[tuple[int, Any], None, None], shown: Progress, *, ordered: bool, raising: bool
) -> Generator[Any, None, None]:
    """Yield what the caller of `map` asked for."""
    with shortened_errors, shown:
        try:
            for index, outcome in outcomes:
                failed = isinstance(outcome, TcmError)
                shown.update(1, failed=int(failed))
                if failed and raising:
                    try:
                        raise outcome
                    finally:
                        del outcome  # its traceback has this frame
                yield outcome if ordered else (index, outcome)
        finally:
            outcomes.close()
