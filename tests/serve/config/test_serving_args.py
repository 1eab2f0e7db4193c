import pytest

from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.config.serving_args import LLMServingArgs


def test_objects_may_be_given():
    config = LLMConfig.from_dict({"model_loading_config": {"model_id": "m"}})
    assert LLMServingArgs.from_dict({"llm_configs": [config]}).llm_configs == [config]


def test_where_and_how_the_ingress_listens() -> None:
    model = {"model_loading_config": {"model_id": "m"}}
    given = {
        "llm_configs": [model],
        "listen": "[::1]:8000",
        "http": {"api_keys": ["a"], "limits": {"max_tokens": 5}},
    }
    args = LLMServingArgs.from_dict(given)
    assert args.listen_address == ("::1", 8000)
    assert args.http.api_keys == {"a"}
    assert args.http.limits.max_tokens == 5
    for wrong in ("8000", "host:", "host:99999", ":1"):
        with pytest.raises(ConfigError, match="listen: must be a host and a port"):
            LLMServingArgs.from_dict({"llm_configs": [model], "listen": wrong})
    with pytest.raises(ConfigError, match=r"http\.limits.*Did you mean 'max_tokens'"):
        LLMServingArgs.from_dict({"llm_configs": [model], "http": {"limits": {"max_token": 5}}})


PLAIN = {"model_loading_config": {"model_id": "m"}}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"llm_configs": [PLAIN, {**PLAIN, "model_loading_config": {"model_id": "other"}}]},
            "several models",
        ),
        ({"llm_configs": [{**PLAIN, "deployment_config": {"num_replicas": 2}}]}, "more replicas"),
        ({"ingress_cls_config": {"ingress_cls": "a:B"}}, "ingress class"),
        ({"http": {"dev": True}}, "control routes"),
    ],
)
def test_where_the_replica_cannot_be_the_front(fields: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        LLMServingArgs.from_dict(
            {"llm_configs": [PLAIN], "listen": "127.0.0.1:1", "front": "replica", **fields}
        )
