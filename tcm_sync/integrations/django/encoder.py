"""A JSON encoder for the responses of views."""

from __future__ import annotations

from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from tcm_sync.integrations._json import to_json


class TcmJSONEncoder(DjangoJSONEncoder):
    """Writes results and arrays as JSON, with null for NaN and infinity in them.

    ``JsonResponse(result, encoder=TcmJSONEncoder, safe=False)``.
    """

    def default(self, o: Any) -> Any:
        """Return what Django cannot write itself as something that it can.

        Parameters
        ----------
        o : object
            What is to be written.

        Returns
        -------
        object
            Lists, numbers and strings.
        """
        return to_json(o, super().default)
