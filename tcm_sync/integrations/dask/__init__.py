"""Models over Dask arrays and Dask data frames, and a client for each worker process.

Install it with the extra ``dask``; `infer_frame` also needs the extra ``frames`` and ``dask.dataframe``.
docs/dask.rst shows how it is used.
"""

from __future__ import annotations

from tcm_sync._tracebacks import shortened

try:
    import dask.array  # noqa: F401
    import distributed  # noqa: F401
except ImportError as error:
    raise shortened(
        ImportError("tcm_sync.integrations.dask needs Dask: pip install 'tcm-sync[dask]'")
    ) from error

from tcm_sync.integrations.dask.arrays import infer_array
from tcm_sync.integrations.dask.clients import TcmPlugin
from tcm_sync.integrations.dask.frames import infer_frame

__all__ = ["TcmPlugin", "infer_array", "infer_frame"]
