"""The tokens that stages tell of."""

import pytest

from penstock.batch.pipeline.stage_chain import usage_of
from penstock.types import Usage


@pytest.mark.parametrize(
    ("columns", "usage"),
    [
        ({}, None),
        (
            {"num_input_tokens": 3, "num_generated_tokens": 4, "num_cached_tokens": 1},
            Usage(3, 4, 1),
        ),
        ({"num_input_tokens": 3, "embeddings": []}, Usage(3)),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Usage(3, 4)),
        (
            {
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": None,
                    "prompt_tokens_details": None,
                }
            },
            Usage(3),
        ),
        (
            {
                "http_response": {
                    "usage": {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}
                }
            },
            Usage(3, 0, 2),
        ),
        ({"http_response": {"usage": {"output_tokens": 4}}}, Usage(0, 4)),
        (
            {"usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4}},
            Usage(5, 4, 2),
        ),
        (
            {"usage": {"input_tokens": 3, "cache_creation_input_tokens": 7, "output_tokens": 4}},
            Usage(10, 4),
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "completion_tokens_details": {"reasoning_tokens": 2},
                }
            },
            Usage(3, 4, 0, 2),
        ),
        ({"http_response": ["usage"], "usage": "high"}, None),
        ({"usage": {"calls": 3}}, None),
    ],
)
def test_usage_in_each_of_its_forms(columns, usage):
    assert usage_of(columns) == usage


def test_stages_together():
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)
