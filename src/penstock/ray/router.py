"""Ray Serve's request router for models. It reports the replicas to our own routing, and routes
calls through Ray as usual.

Ray pickles this module by value to every process with a handle, so shared state lives elsewhere.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter


class ModelRequestRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Publishes the replicas in this process whenever they change."""

    def update_replicas(self, replicas: list[Any]) -> None:
        """Publish the replicas that run now."""
        from penstock.ray.replicas import publish

        super().update_replicas(replicas)
        deployment = self._deployment_id
        publish(deployment.app_name, deployment.name, replicas)
