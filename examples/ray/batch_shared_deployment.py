"""Two processors share one model, which Ray Serve serves."""

import ray
from ray import serve

from penstock.compat.ray import (
    LLMConfig,
    ServeDeploymentProcessorConfig,
    build_llm_deployment,
    build_processor,
)

llm_config = LLMConfig(model_loading_config={"model_id": "demo", "model_source": "demo"})


def asks(question, column):
    """A processor that asks `question` about a text, and puts the answer into `column`."""
    config = ServeDeploymentProcessorConfig(deployment_name="demo", app_name="shared", batch_size=4)
    return build_processor(
        config,
        preprocess=lambda row: {
            "method": "chat",
            "request_kwargs": {
                "model": "demo",
                "messages": [{"role": "user", "content": f"{question}: {row['text']}"}],
                "temperature": 0.0,
                "max_tokens": 40,
            },
        },
        postprocess=lambda row: {
            **{name: row[name] for name in ("text", "label") if name in row},
            column: row["choices"][0]["message"]["content"],
        },
    )


if __name__ == "__main__":
    app = build_llm_deployment(llm_config, override_serve_options={"name": "demo"})
    serve.run(app, name="shared", route_prefix=None)
    texts = ray.data.from_items([{"text": "My Solara 77 is broken."}, {"text": "Where is it?"}])
    for row in asks("Keys: order", "detail")(asks("Keys: category", "label")(texts)).take_all():
        print(row["text"], "|", row["label"], "|", row["detail"])
    serve.delete("shared")
