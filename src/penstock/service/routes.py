"""Gives an ingress the batch and files APIs."""

from __future__ import annotations

from penstock.serve.api.ingress import IngressApp
from penstock.service.endpoints.message_batches import MessageBatchRoutes
from penstock.service.endpoints.openai_api import BatchRoutes, FileRoutes, UploadRoutes
from penstock.service.service import BatchService


def add_batches(app: IngressApp) -> BatchService | None:
    """Add the routes of files and batches, if the settings name a place for them. The caller starts
    and closes the service; it stops when the ingress drains. Raises `ConfigError`.
    """
    settings = app.ingress.settings.batches
    if settings is None:
        return None
    service = BatchService(app.ingress, settings)
    kinds = (FileRoutes, UploadRoutes, BatchRoutes, MessageBatchRoutes)
    app.add(endpoint for kind in kinds for endpoint in kind(service).endpoints())
    app.ingress.on_drain.append(service.stop)
    return service
