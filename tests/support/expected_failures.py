"""Checks of tests/clients that are known to fail, and why."""

OVERFLOW = "an overflow of the context is not told in the words that the client knows"
ECHO = "echo gives no log-probabilities of the prompt"
USAGE = "continuous_usage_stats is not supported"
LIMIT = "max_tokens beyond the context is not cut to what is left"
TOP = "the embedded engine has no top_logprobs"
COUNT = "there is no /v1/messages/count_tokens"

# Chance decides these: they may pass.
SOMETIMES = {("llama-index", "streamed_structured")}
# By client and check, and where a check fails on one model only, that model.
EXPECTED: dict[tuple[str, ...], str] = {
    ("aider", "long_prompt"): OVERFLOW,
    ("aiperf", "chunk_usage"): USAGE,
    ("anthropic", "count_tokens"): COUNT,
    ("anthropic", "long_prompt"): OVERFLOW,
    ("anthropic", "much_to_say"): LIMIT,
    ("anthropic", "request_id"): "Anthropic's request-id header is not sent",
    ("anthropic", "tool_runner"): "threads are not refused in the way that the client knows",
    ("anthropic", "unknown_path"): "errors of Anthropic's unknown paths have OpenAI's form",
    ("guidellm", "completions"): USAGE,
    ("guidellm", "stream"): USAGE,
    ("inspect-ai", "logprobs"): TOP,
    ("inspect-ai", "long_prompt"): OVERFLOW,
    ("langchain-anthropic", "count_tokens"): COUNT,
    ("langchain-anthropic", "long_prompt"): OVERFLOW,
    ("langchain-anthropic", "page"): LIMIT,
    ("langchain-openai", "logprobs"): TOP,
    ("langchain-openai", "long_prompt"): OVERFLOW,
    ("litellm", "long_prompt"): OVERFLOW,
    ("litellm", "rerank"): "there is no /rerank",
    ("llama-index", "streamed_structured", "smol"): "nothing makes the model call a tool",
    ("lm-eval", "choices"): ECHO,
    ("lm-eval", "choices_of_ids"): ECHO,
    ("lm-eval", "choices_of_the_server"): "there is no /tokenizer_info",
    ("lm-eval", "perplexity"): ECHO,
    ("openai", "allowed_tools"): "allowed_tools are not known",
    ("openai", "custom_tools"): "custom tools are not known",
    ("openai", "echoed_logprobs"): ECHO,
    ("openai", "functions"): "functions, the older form of tools, are not known",
    ("openai", "logit_bias"): "logit_bias is not supported",
    ("openai", "logprobs"): TOP,
    ("openai", "long_prompt"): OVERFLOW,
    ("openai", "much_to_say"): LIMIT,
    ("openai", "refused"): "a permanent refusal is a 501",
    ("openai", "token_embeddings"): "token ids are not embedded",
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
