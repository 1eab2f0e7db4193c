"""Ray Serve's request router for models: its own choice for calls through Ray, and the source of
ours.

Ray ships this module's content by value to wherever a handle lives, so what processes share is kept
elsewhere.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter


class ModelRequestRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Tells this process which replicas there are, whenever that changes."""

    def update_replicas(self, replicas: list[Any]) -> None:
        """Take over the replicas that run now."""
        from penstock.ray.replicas import publish

        super().update_replicas(replicas)
        deployment = self._deployment_id
        publish(deployment.app_name, deployment.name, replicas)
