"""The stage that asks an HTTP endpoint. Its worker, `http_worker`, brings the HTTP client."""

from __future__ import annotations

from penstock.batch.stages.base import StatefulStage


class HttpRequestStage(StatefulStage):
    """Sends `payload` and stores the answer in `http_response`."""

    def get_required_input_keys(self) -> dict[str, str]:
        return {"payload": "What is sent, as JSON."}
