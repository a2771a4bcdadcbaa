"""Many inferences at once: futures, and maps over inputs without end."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from tcm_sync._arguments import check_choice, check_flag, check_whole, is_iterable
from tcm_sync._calls.inference import Inference
from tcm_sync._calls.progress import Progress
from tcm_sync._calls.request import Plan
from tcm_sync._reentry import entrance
from tcm_sync.errors import InputError, TcmError
from tcm_sync.results import InferResult
from tcm_sync.settings import UNSET, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._calls.worker_threads import Workers
    from tcm_sync._shm.policy import Transport
    from tcm_sync.retry import RetryPolicy

_MOST_AT_ONCE = 2**31  # which no number of threads reaches, and islice takes
_AHEAD = 3  # inputs that are read ahead for each call under way

OnError = Literal["raise", "return"]
Task = Callable[[], Any] | TcmError  # what is to be done, or why it cannot be


class Many(Inference):
    """The client's `submit` and `map`."""

    def submit(
        self,
        model_name: str,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        transport: Transport = "auto",
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Future[InferResult]:
        """Run a model in the background and return the future of its result.

        The inputs are checked and encoded here and now, so that they may be changed afterwards. At most
        ``pool_size`` calls run at a time, the others wait their turn. One that waits can be cancelled, one
        that runs cannot. Callbacks run in the background, or in the thread that cancels.

        Parameters
        ----------
        model_name, inputs, vm_ip, container_id, vm_id, allow_transient, output_dtypes, retry
            As `infer` takes them.
        timeout : float or None, optional
            Seconds for the call once its turn has come; None is no limit. Left out, the client's.

        Returns
        -------
        concurrent.futures.Future of InferResult
            Its exception is what `infer` would raise; `ClientClosedError` if the client is closed before
            its turn.

        Raises
        ------
        InputError, MessageTooLargeError
            The arguments cannot be sent.
        ClientClosedError
            The client is closed.
        """
        plan = self._plan(
            model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes, timeout, retry, transport
        )
        self._deadline(timeout)  # checks it
        return self._background().submit(self._task(plan, inputs))

    def map(
        self,
        model_name: str,
        many_inputs: Iterable[object],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        transport: Transport = "auto",
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[Any]:
        """Run a model on one input after another, several at a time, and yield the results.

        It reads no more inputs than it needs to keep the sockets busy, so that they may be without end.
        Leaving the loop early cancels what has not begun.

        Parameters
        ----------
        model_name : str
            The model.
        many_inputs : iterable
            Of what `infer` takes as inputs.
        concurrency : int, optional
            How many calls run at a time; left out, ``pool_size``, more than which wait for sockets.
        ordered : bool
            Whether the results come in the order of the inputs. Otherwise they come as they are there,
            each as ``(index, result)``.
        progress : bool
            Whether to show how many are done (with tqdm: the extra ``progress``).
        on_error : {"raise", "return"}
            Whether a failure ends it, or is yielded in place of its result.
        vm_ip, container_id, vm_id, allow_transient, output_dtypes, retry
            As `infer` takes them.
        timeout : float or None, optional
            Seconds for each call once its turn has come; None is no limit. Left out, the client's.

        Yields
        ------
        InferResult, or TcmError where ``on_error="return"``; with its index where not ``ordered``

        Raises
        ------
        InputError
            An argument is wrong. What is wrong with an input counts as the failure of its call.
        """
        plan = self._plan(
            model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes, timeout, retry, transport
        )
        self._deadline(timeout)  # checks it
        check_choice("on_error", on_error, ("raise", "return"))
        ordered = check_flag("ordered", ordered)
        if not is_iterable(many_inputs):
            raise InputError(f"many_inputs must be an iterable of inputs, not {type(many_inputs).__name__}")
        most = self._settings.pool_size if concurrency is None else concurrency
        most = check_whole("concurrency", most, kind=InputError)
        total = len(many_inputs) if isinstance(many_inputs, Sized) else None
        shown = Progress(model_name, shown=progress, counted=True, total=total)
        self._begin()
        tasks = (self._task_or_failure(plan, inputs) for inputs in many_inputs)
        how = in_order if ordered else as_they_come
        return _yielded(
            how(tasks, self._crew(most), most), shown, ordered=ordered, raising=on_error == "raise"
        )

    @entrance
    def _background(self) -> Workers:
        """Return the threads of `submit`."""
        self._running()
        workers = self._workers
        if workers is None:
            workers = self._new_crew(self._settings.pool_size)
            with self._lock:
                workers = self._workers = self._workers or workers
        return workers

    def _task(self, plan: Plan, inputs: object) -> Callable[[], InferResult]:
        """Encode the inputs, and return what is to be done with them when their turn has come."""
        prepared = self._encode(plan, inputs, later=True)
        return lambda: self._infer(plan, prepared, self._deadline(plan.timeout))

    def _task_or_failure(self, plan: Plan, inputs: object) -> Callable[[], InferResult] | TcmError:
        try:
            return self._task(plan, inputs)
        except TcmError as error:
            return error


def in_order(tasks: Iterator[Task], crew: Workers, most: int) -> Generator[tuple[int, Any], None, None]:
    """Do tasks several at a time, and yield each one's index and outcome in order; failures are outcomes."""
    waiting: deque[Future[Any]] = deque()
    try:
        for index in itertools.count():
            crew.check_process()
            waiting.extend(_begun(tasks, crew, min(most, _MOST_AT_ONCE) * _AHEAD - len(waiting)))
            if not waiting:
                return
            yield index, _outcome(waiting.popleft())
    finally:
        _stop(waiting, crew)


def as_they_come(tasks: Iterator[Task], crew: Workers, most: int) -> Generator[tuple[int, Any], None, None]:
    """Do the same, and yield each outcome once it is there."""
    waiting: dict[Future[Any], int] = {}
    counter = itertools.count()
    try:
        while True:
            crew.check_process()
            for future in _begun(tasks, crew, min(most, _MOST_AT_ONCE) * _AHEAD - len(waiting)):
                waiting[future] = next(counter)
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _outcome(future)
    finally:
        _stop(waiting, crew)


def _begun(tasks: Iterator[Task], crew: Workers, room: int) -> list[Future[Any]]:
    """Give the crew as many tasks as there is room for; one that failed already has failed."""
    return [
        _failed(task) if isinstance(task, TcmError) else crew.submit(task) for task in islice(tasks, room)
    ]


def _failed(error: TcmError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except TcmError as error:
        return error


def _stop(futures: Iterable[Future[Any]], crew: Workers) -> None:
    if crew.is_inherited():  # no lock is to be trusted then
        return
    for future in futures:
        future.cancel()
    crew.close()


def _yielded(
    outcomes: Generator[tuple[int, Any], None, None], shown: Progress, *, ordered: bool, raising: bool
) -> Iterator[Any]:
    """Yield what the caller of `map` asked for."""
    with shown, closing(outcomes):
        for index, outcome in outcomes:
            if raising and isinstance(outcome, TcmError):
                raise outcome
            shown.update(1)
            yield outcome if ordered else (index, outcome)
