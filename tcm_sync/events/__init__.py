"""What happens inside clients, reported to listeners: calls, attempts, connections, gates and batches.

A `Listener` has one method for each kind of event; override those that matter. Pass it to one client,
``TcmClient(listeners=[listener])``, or to all clients of the process, those that exist already too, with
`add_listener`. The views of a client (`TcmClient.with_options`) share its listeners.

One daemon thread of the process, ``tcm-sync-events``, calls all listeners, one event after the other in the
order in which they happened. No call waits for a listener: where listeners are so slow that 10,000 events
wait, further ones are dropped, and the first is logged. The methods for events of a call run in a copy of the
context (`contextvars`) in which the call was begun, so that a request's id or the current span is there. A
listener that raises an exception, or takes longer than a second, is logged once (logger ``tcm_sync.events``).

Listeners are kept over a fork; events that were waiting at the fork are delivered in the parent alone. A
pickled client carries none. When a process ends, events that wait are delivered for up to one second.
"""

from tcm_sync.events._listeners import add_listener, flush, remove_listener
from tcm_sync.events._records import (
    AttemptFailed,
    BatchSent,
    CallFinished,
    CallKind,
    CallStarted,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    GateOpened,
    GateShut,
    Listener,
    Phases,
    WaitFinished,
    WaitStarted,
)

__all__ = [
    "AttemptFailed",
    "BatchSent",
    "CallFinished",
    "CallKind",
    "CallStarted",
    "ConnectionClosed",
    "ConnectionOpened",
    "Event",
    "GateOpened",
    "GateShut",
    "Listener",
    "Phases",
    "WaitFinished",
    "WaitStarted",
    "add_listener",
    "flush",
    "remove_listener",
]
