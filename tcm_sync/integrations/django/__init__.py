"""`tcm` and `tcms`, the clients of a Django project, as the setting ``TCM`` describes them.

Install it with the extra ``django``, and add ``"tcm_sync.integrations.django"`` to ``INSTALLED_APPS``.
docs/deploying.rst shows how it is used.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("django") is None:
    raise ImportError("tcm_sync.integrations.django needs Django: pip install 'tcm-sync[django]'")

from tcm_sync.integrations.django.clients import tcm, tcms
from tcm_sync.integrations.django.encoder import TcmJSONEncoder

__all__ = ["TcmJSONEncoder", "tcm", "tcms"]
