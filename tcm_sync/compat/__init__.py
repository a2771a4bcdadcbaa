"""The names of tcm-client 2.0.0, the manager's asynchronous client, on the connections of this package.

::

    from tcm_sync.compat import AuthContext, InferenceInput, TcmClient  # in place of tcm_client.sdk

`TcmClient` has the same methods, positional arguments and answers: messages as the manager sent them, those
of failed inferences included. Unlike tcm-client it keeps its connections, may be used by any number of
threads, and takes no other message for the reply. docs/migrating.rst has the differences, and the calls of
`tcm_sync.TcmClient` that take the place of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcm_sync._tracebacks import shortened
from tcm_sync.compat.client import TcmClient
from tcm_sync.compat.messages import AuthContext, InferenceInput, InferenceResponse

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["AuthContext", "InferenceInput", "InferenceResponse", "TcmClient"]

#: What takes the place of the other names of tcm-client.
_ELSEWHERE = {
    "TcmWebSocketClient": "TcmClient of this module has its calls, without await and auth(); "
    "tcm_sync.TcmClient also has pipelines and streams",
    "quickstart_queue_stats": "use tcm_sync.TcmClient(uri).queue_stats()",
    "run_quickstart": "use tcm_sync.TcmClient(uri).queue_stats()",
    "AuthClientInfo": "pass an AuthContext; the client writes the message",
    "AuthPayload": "pass an AuthContext; the client writes the message",
    "BaseRequest": "call infer(), info_queue_stats() or management_creation(); the client writes the message",
    "InferenceRequest": "call infer(); the client writes the message",
    "InferenceRequestPayload": "call infer(); the client writes the message",
    "AnalyzeModelAction": "use tcm_sync.models.analyze(path)",
    "AnalyzeModelReport": "tcm_sync.models.analyze(path) returns a tcm_sync.models.ModelAnalysis",
    "AnalyzedIO": "tcm_sync.models.analyze(path) returns a tcm_sync.models.ModelAnalysis",
    "JsonDict": "use dict[str, typing.Any]",
}


def __getattr__(name: str) -> NoReturn:
    """Name what takes the place of another name of tcm-client.

    Raises
    ------
    ImportError
        For the names of tcm-client that are not here.
    """
    if name in _ELSEWHERE:
        raise shortened(ImportError(f"tcm_sync.compat has no {name}: {_ELSEWHERE[name]}", name=__name__))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
