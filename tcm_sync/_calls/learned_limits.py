"""How large a message may be and how many rows a request may have, as refusals of larger ones showed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcm_sync._logs import Log
from tcm_sync._transport.authentication import fresh_uuid
from tcm_sync._ttl_cache import TtlCache
from tcm_sync._wire.encode import StatedLimit, encode_message, size_of
from tcm_sync.errors import InferenceFailedError, MessageTooLargeError, PayloadTooLargeError
from tcm_sync.settings import AuthContext

if TYPE_CHECKING:
    from tcm_sync._pool.runtime import Runtime
    from tcm_sync.errors import TcmError
    from tcm_sync.retry import RetryPolicy
    from tcm_sync.settings import Route, Settings

    Target = tuple[Route, str]

log = Log("tcm_sync.pool", queued=True)

#: Bytes of a message. A request of one small tensor has some 300, and an authentication with a token up to
#: 1,000: a manager with a lower limit could serve no client, so the number must be wrong, and every call
#: would fail by it.
LOWEST_LIMIT = 1_024

_MAX_TARGETS = 256  # routes and models that limits are kept of
_FULL = 0.9  # how full a reply is meant to be: rows differ in their text
_KEPT = 600.0  # seconds after which a model may have been replaced by one that accepts more rows


class MessageLimit:
    """The most bytes of a message: as set, or as the manager stated when it refused a larger one.

    A statement below `LOWEST_LIMIT` is logged once and not kept: the manager refuses what it does not accept.

    Parameters
    ----------
    settings : Settings
        The client's.

    Attributes
    ----------
    inference_room : int
        What the limit leaves to the payload of an inference.
    """

    def __init__(self, settings: Settings) -> None:
        self._set = settings.max_message_bytes
        uuid = fresh_uuid((settings.auth or AuthContext()).uuid)  # as long as all will be
        self._bare_envelope_bytes = size_of(encode_message(uuid, "", ()))
        self._stated: StatedLimit | None = None
        self._stated_by = 0  # which manager that was, as the runtime counts them
        self._warned = False  # of a limit that is too low; two threads may both warn
        self.inference_room = self._set - self.envelope_bytes("inference")

    def envelope_bytes(self, kind: str) -> int:
        """Count the bytes that the envelope adds to a payload."""
        return self._bare_envelope_bytes + len(kind)

    def now(self, runtime: Runtime | None) -> int:
        """Return the limit; one that was stated holds until another manager answers."""
        stated = self._stated
        if stated is None:
            return self._set
        if runtime is None or runtime.manager_state.limits_epoch == self._stated_by:
            return stated
        self._stated = None
        self.inference_room = self._set - self.envelope_bytes("inference")
        return self._set

    def learn(self, stated: int | None, refused: int, runtime: Runtime | None) -> None:
        """Keep the limit that the manager stated, or did not, when it refused a message of so many bytes."""
        limit = refused - 1 if stated is None else stated
        if limit < LOWEST_LIMIT:
            if stated is not None and not self._warned:
                self._warned = True
                log.warning(
                    "the manager states a limit of %d bytes a message, which hardly any request fits: it is "
                    "ignored, and requests are sent (check the manager's limit; its usual one is 65,536)",
                    limit,
                )
            return
        if limit < self.now(runtime) and runtime is not None:
            self._stated_by = runtime.manager_state.limits_epoch
            self._stated = StatedLimit(limit)
            self.inference_room = limit - self.envelope_bytes("inference")


class RowLimits:
    """The most rows of a request, by route and model; a limit is kept for ten minutes after a refusal."""

    def __init__(self) -> None:
        self._rows: TtlCache[Target, int] = TtlCache(_KEPT, _MAX_TARGETS)
        self._bytes: TtlCache[Target, int] = TtlCache(_KEPT, _MAX_TARGETS)  # of arrays: a payload budget

    def rows(self, target: Target, row_bytes: int) -> int | None:
        """Return the most rows that a request may have, None if there is no such limit.

        Parameters
        ----------
        target : (Route, str)
            The route and the model.
        row_bytes : int
            Bytes of one row in the arrays.
        """
        if not self._rows and not self._bytes:
            return None
        most, budget = self._rows.get(target), self._bytes.get(target)
        if budget is None:
            return most
        fitting = max(1, budget // max(1, row_bytes))
        return fitting if most is None else min(most, fitting)

    def learn(
        self, target: Target, error: TcmError, rows: int, row_bytes: int, policy: RetryPolicy | None
    ) -> int | None:
        """Learn from the failure of so many rows, and return how many to send in their place.

        Rows whose reply was too large have run: they are sent again only if the policy allows that.

        Returns
        -------
        int or None
            Fewer rows than failed; None if the failure has another reason, or one row failed.
        """
        if rows < 2:
            return None
        if isinstance(error, InferenceFailedError) and error.max_batch_size is not None:
            most = _lower(self._rows, target, min(error.max_batch_size, rows - 1))
        elif isinstance(error, PayloadTooLargeError):
            if error.estimated_bytes and error.limit_bytes:
                budget = rows * row_bytes * error.limit_bytes // error.estimated_bytes
                most = _lower(self._bytes, target, budget) // max(1, row_bytes)
            else:
                most = _lower(self._rows, target, rows // 2)
        elif isinstance(error, MessageTooLargeError) and error.size is None:
            # A limit that was stated holds for every message of the client: the rows' text decides.
            stated = error.limit is not None and error.limit >= LOWEST_LIMIT
            most = rows if stated else _lower(self._rows, target, rows // 2)
        elif (share := _share_of_reply(error)) is not None and policy is not None and policy.resend_lost:
            most = _lower(self._rows, target, max(1, int(rows * min(0.5, share))))
        else:
            return None
        return max(1, min(most, rows - 1))


def _share_of_reply(error: TcmError) -> float | None:
    """Return which share of a reply that is too large would fit; None if `error` is not about a reply.

    Only a reply has both a size and a socket: requests are measured before there is one, and the manager
    does not report the size of what it refuses.
    """
    if not isinstance(error, MessageTooLargeError) or error.uuid is None or not error.size or not error.limit:
        return None
    return _FULL * error.limit / error.size


def _lower(limits: TtlCache[Target, int], target: Target, limit: int) -> int:
    """Keep the lower limit."""
    known = limits.get(target)
    limit = limit if known is None else min(limit, known)
    limits.put(target, limit)
    return limit
