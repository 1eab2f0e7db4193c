"""Checks of tests/clients that are known to fail, and why."""

OVERFLOW = "an overflow of the context is not told in the words that the client knows"
TURNS = "templates without tools cannot take an assistant's turn that only calls a tool"
TOP = "the embedded engine has no top_logprobs"
COUNT = "there is no /v1/messages/count_tokens"

# By client and check, and where a check fails on one model only, that model.
EXPECTED = {
    ("anthropic", "request_id"): "Anthropic's request-id header is not sent",
    ("anthropic", "prefill"): "an assistant's last message is not continued",
    ("anthropic", "count_tokens"): COUNT,
    ("anthropic", "unknown_path"): "errors of Anthropic's unknown paths have OpenAI's form",
    ("anthropic", "long_prompt"): OVERFLOW,
    ("anthropic", "tools", "smol"): TURNS,
    ("anthropic", "streamed_tools", "smol"): TURNS,
    ("langchain-anthropic", "page"): "max_tokens beyond the context is not cut to what is left",
    ("langchain-anthropic", "count_tokens"): COUNT,
    ("langchain-anthropic", "long_prompt"): OVERFLOW,
    ("langchain-anthropic", "tools", "smol"): TURNS,
    ("langchain-openai", "logprobs"): TOP,
    ("langchain-openai", "long_prompt"): OVERFLOW,
    ("langchain-openai", "tools", "smol"): TURNS,
    ("langchain-openai", "streamed_tools", "smol"): TURNS,
    ("langchain-openai", "responses_tools", "smol"): TURNS,
    ("litellm", "long_prompt"): OVERFLOW,
    ("litellm", "rerank"): "there is no /rerank",
    ("litellm", "tools", "smol"): TURNS,
    ("litellm", "anthropic_tools", "smol"): TURNS,
    ("openai", "logprobs"): TOP,
    ("openai", "logit_bias"): "logit_bias is not supported",
    ("openai", "responses"): "the numbers of events in a response's stream are out of order",
    ("openai", "stored_responses"): "responses are not stored",
    ("openai", "echoed_logprobs"): "echo gives no log-probabilities of the prompt",
    ("openai", "long_prompt"): OVERFLOW,
    ("openai", "refused"): "a permanent refusal is a 501",
    ("openai", "tools", "smol"): TURNS,
    ("openai", "responses_tools", "smol"): TURNS,
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
