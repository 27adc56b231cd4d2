"""Addresses: the wiki at the root, its notifications, Django's administration, and a health check."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def health(_: HttpRequest) -> HttpResponse:
    """Answer while the process works; the page / tells whether the database answers."""
    return HttpResponse("ok\n", content_type="text/plain")


urlpatterns = [
    path("healthz", health),
    path("admin/", admin.site.urls),
    path("notifications/", include("django_nyt.urls")),
    path("", include("wiki.urls")),
]
