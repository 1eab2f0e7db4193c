"""A data set through any OpenAI-compatible endpoint, journaled: run it again and it goes on where
it was.

OPENAI_API_KEY=… python examples/http_endpoint.py URL in.jsonl out.jsonl
"""

import sys

import penstock
from penstock.batch import HttpRequestProcessorConfig, build_processor


def main(url: str, source: str, output: str) -> None:
    """Ask each row's `question`; rows that fail become error rows, with the endpoint's status and
    body.
    """
    processor = build_processor(
        HttpRequestProcessorConfig(
            url=url,
            headers={"Authorization": "Bearer ${OPENAI_API_KEY}"},
            max_retries=4,
            should_continue_on_error=True,
        ),
        preprocess=lambda row: {
            "payload": {
                "model": "gpt-4o-mini",
                "messages": [{"role": "user", "content": row["question"]}],
            }
        },
        postprocess=lambda row: {
            "question": row["question"],
            "answer": row["http_response"]["choices"][0]["message"]["content"],
        },
    )
    print(penstock.run(source, output, processor=processor).counts)


if __name__ == "__main__":
    main(*sys.argv[1:])
