"""The addresses of the probes, for ``include("tcm_sync.integrations.django.urls")``."""

from __future__ import annotations

from django.urls import path

from tcm_sync.integrations.django.views import healthz, readyz

app_name = "tcm"
urlpatterns = [path("healthz", healthz, name="healthz"), path("readyz", readyz, name="readyz")]
