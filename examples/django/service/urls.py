"""The addresses of the service."""

from django.urls import include, path

from service import views

urlpatterns = [
    path("digits", views.digits),
    path("digits/both", views.both),
    path("", include("tcm_sync.integrations.django.urls")),
]
