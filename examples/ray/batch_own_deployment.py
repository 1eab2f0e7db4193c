"""Rows of a data set through a deployment of one's own, which takes lists."""

import ray
from ray import serve

from penstock.compat.ray import ServeDeploymentProcessorConfig, build_processor


@serve.deployment
class Lengths:
    """Counts words, for many texts at once."""

    def count(self, requests):
        return [{"words": len(request["text"].split())} for request in requests]


if __name__ == "__main__":
    serve.run(Lengths.bind(), name="lengths", route_prefix=None)
    config = ServeDeploymentProcessorConfig(
        deployment_name="Lengths", app_name="lengths", rows_per_call=16
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {"method": "count", "request_kwargs": {"text": "a " * row["id"]}},
        postprocess=lambda row: {"id": row["id"], "words": row["words"]},
    )
    rows = processor(ray.data.range(20)).take_all()
    assert all(row["words"] == row["id"] for row in rows)
    print(f"{len(rows)} texts counted")
    serve.delete("lengths")
