"""The Django application: its system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class TcmConfig(AppConfig):
    """Registers the system checks."""

    name = "tcm_sync.integrations.django"
    label = "tcm_sync"
    verbose_name = "Triton Client Manager"

    def ready(self) -> None:
        """Register the checks of the setting ``TCM``."""
        from tcm_sync.integrations.django import checks as own

        checks.register(own.check_settings, "tcm")
        checks.register(own.check_deployment, "tcm", deploy=True)
