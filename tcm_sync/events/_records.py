"""The records of events, and the base class of what receives them."""

from __future__ import annotations

from typing import ClassVar, Literal

from msgspec import Struct

CallKind = Literal["infer", "batch", "pipeline", "stream", "info", "management"]


class Event(Struct, frozen=True, kw_only=True, eq=False):
    """What all events have.

    Attributes
    ----------
    at : float
        When it happened, in seconds since the epoch.
    manager : str
        Host and port of the manager.
    """

    method: ClassVar[str]  # of a listener

    at: float
    manager: str


class _CallEvent(Event, frozen=True, kw_only=True, eq=False):
    """What the events of calls have.

    Attributes
    ----------
    call_id : int
        The same for all events of one call, and unique in the process.
    kind : str
        The method: ``"infer"`` (`submit`, `map` and the messages of `infer_chunked` too), ``"batch"`` (one
        message with the samples of several `infer_sample`), ``"pipeline"``, ``"stream"``, ``"info"`` or
        ``"management"``.
    model_name : str
        The model; empty for kinds that have none.
    container_id, vm_ip, vm_id : str or None
        The route, where there is one.
    """

    call_id: int
    kind: CallKind
    model_name: str
    container_id: str | None
    vm_ip: str | None
    vm_id: str | None


class CallStarted(_CallEvent, frozen=True, kw_only=True, eq=False):
    """A call has begun: its arguments are checked, and those of an inference encoded.

    What `submit` and `map` were given begins when its turn comes. A call whose arguments are refused is
    reported by no event, and counted in no statistics.
    """

    method = "call_started"


class Phases(Struct, frozen=True):
    """Where the seconds of a call went, over all its attempts.

    Attributes
    ----------
    encoding : float
        Writing the inputs as JSON, or copying them to shared memory.
    socket : float
        Waiting for a socket, or at a gate that was shut.
    turn : float
        Waiting for a turn among the processes and threads of this host.
    sending : float
        Writing the message to the socket.
    reply : float
        Waiting for the reply; of a stream, until it has ended.
    decoding : float
        Making arrays of the reply.
    pausing : float
        Pauses before repeats.
    """

    encoding: float = 0.0
    socket: float = 0.0
    turn: float = 0.0
    sending: float = 0.0
    reply: float = 0.0
    decoding: float = 0.0
    pausing: float = 0.0


class CallFinished(_CallEvent, frozen=True, kw_only=True, eq=False):
    """A call has ended, with a result or an error.

    Attributes
    ----------
    code : str or None
        The manager's code of the failure, else the name of its class; None if there was none. A stream that
        was closed early has ``"closed"``.
    error : str or None
        The name of the exception's class.
    attempts : int
        How often the request was sent, or begun to be.
    seconds : float
        In all: the sum of the phases.
    phases : Phases
        Where they went.
    bytes_sent, bytes_received : int
        Of the messages of all attempts, without their envelopes. Tensors in shared memory are not counted.
    transport : {"json", "shm"}
        How the inputs went: as JSON, or through shared memory.
    batch_size : int or None
        How many samples a batch had; None for other kinds.
    """

    method = "call_finished"

    code: str | None
    error: str | None
    attempts: int
    seconds: float
    phases: Phases
    bytes_sent: int
    bytes_received: int
    transport: Literal["json", "shm"]
    batch_size: int | None


class WaitStarted(_CallEvent, frozen=True, kw_only=True, eq=False):
    """A call has to wait before it can be sent. One that continues at once is not reported.

    Attributes
    ----------
    wait : {"gate", "socket", "turn"}
        What for: that calls are held back no more, that a socket is free or opened, or its turn among the
        processes and threads of this host.
    """

    method = "wait_started"

    wait: Literal["gate", "socket", "turn"]


class WaitFinished(_CallEvent, frozen=True, kw_only=True, eq=False):
    """A wait has ended, because there is what the call waited for, or with a failure.

    Attributes
    ----------
    wait : {"gate", "socket", "turn"}
        As in `WaitStarted`.
    seconds : float
        How long it took.
    """

    method = "wait_finished"

    wait: Literal["gate", "socket", "turn"]
    seconds: float


class AttemptFailed(_CallEvent, frozen=True, kw_only=True, eq=False):
    """A request that had a socket failed. The call may be repeated, or end with this failure.

    Attributes
    ----------
    attempt : int
        Which attempt of the call it was, from 1.
    code : str
        The manager's code of the failure, else the name of its class.
    error : str
        The name of the exception's class.
    message : str
        Its text.
    uuid : str
        The socket's, which the manager's log names.
    """

    method = "attempt_failed"

    attempt: int
    code: str
    error: str
    message: str
    uuid: str


class ConnectionOpened(Event, frozen=True, kw_only=True, eq=False):
    """A socket was opened and authenticated.

    Attributes
    ----------
    uuid : str
        Its own, which the manager's log names.
    pool : {"inference", "management"}
        What it is for.
    seconds : float
        How long that took.
    """

    method = "connection_opened"

    uuid: str
    pool: Literal["inference", "management"]
    seconds: float


class ConnectionClosed(Event, frozen=True, kw_only=True, eq=False):
    """A socket was closed, by whichever side.

    Attributes
    ----------
    uuid : str
        Its own, which the manager's log names.
    pool : {"inference", "management"}
        What it was for.
    reason : str
        Why; what is before a colon is one of few texts.
    requests : int
        How many requests it has carried.
    seconds : float
        How long it was open.
    """

    method = "connection_closed"

    uuid: str
    pool: Literal["inference", "management"]
    reason: str
    requests: int
    seconds: float


class GateShut(Event, frozen=True, kw_only=True, eq=False):
    """Calls are held back after a failure. A gate that is shut may be shut again, for longer.

    Attributes
    ----------
    gate : str
        ``"manager"`` (it cannot be reached), ``"authentication"``, ``"backpressure"``, or ``"circuit of …"``
        and the model.
    gate_id : int
        A number of its own in this process: several clients, and a model in several containers, have gates
        of one name.
    code : str
        The manager's code of the failure, else the name of its class.
    message : str
        Its text.
    seconds : float
        After which one call, or one new socket, tries again.
    """

    method = "gate_shut"

    gate: str
    gate_id: int
    code: str
    message: str
    seconds: float


class GateOpened(Event, frozen=True, kw_only=True, eq=False):
    """Calls are held back no more.

    Attributes
    ----------
    gate, gate_id
        As in `GateShut`.
    seconds : float
        For how long it was shut.
    """

    method = "gate_opened"

    gate: str
    gate_id: int
    seconds: float


class BatchSent(Event, frozen=True, kw_only=True, eq=False):
    """A batch of samples goes out; a repeat of it is not reported again.

    Attributes
    ----------
    model_name : str
        The model.
    container_id : str
        Where it runs.
    size : int
        How many samples it has.
    """

    method = "batch_sent"

    model_name: str
    container_id: str
    size: int


class Listener:
    """Receives events: a method for each kind, which does nothing until it is overridden."""

    def call_started(self, event: CallStarted) -> None:
        """Receive the beginning of a call.

        Parameters
        ----------
        event : CallStarted
            Its record.
        """

    def call_finished(self, event: CallFinished) -> None:
        """Receive the end of a call.

        Parameters
        ----------
        event : CallFinished
            Its record.
        """

    def wait_started(self, event: WaitStarted) -> None:
        """Receive the beginning of a wait.

        Parameters
        ----------
        event : WaitStarted
            Its record.
        """

    def wait_finished(self, event: WaitFinished) -> None:
        """Receive the end of a wait.

        Parameters
        ----------
        event : WaitFinished
            Its record.
        """

    def attempt_failed(self, event: AttemptFailed) -> None:
        """Receive the failure of an attempt.

        Parameters
        ----------
        event : AttemptFailed
            Its record.
        """

    def connection_opened(self, event: ConnectionOpened) -> None:
        """Receive a socket that was opened.

        Parameters
        ----------
        event : ConnectionOpened
            Its record.
        """

    def connection_closed(self, event: ConnectionClosed) -> None:
        """Receive a socket that was closed.

        Parameters
        ----------
        event : ConnectionClosed
            Its record.
        """

    def gate_shut(self, event: GateShut) -> None:
        """Receive a gate that was shut.

        Parameters
        ----------
        event : GateShut
            Its record.
        """

    def gate_opened(self, event: GateOpened) -> None:
        """Receive a gate that was opened.

        Parameters
        ----------
        event : GateOpened
            Its record.
        """

    def batch_sent(self, event: BatchSent) -> None:
        """Receive a batch that goes out.

        Parameters
        ----------
        event : BatchSent
            Its record.
        """
