"""Checks of tests/clients that are known to fail, and why."""

OVERFLOW = "an overflow of the context is not told in the words that the client knows"
TURNS = "templates without tools cannot take an assistant's turn that only calls a tool"
SHOWN = "templates without tools are refused unless a call is forced"
ECHO = "echo gives no log-probabilities of the prompt"
USAGE = "continuous_usage_stats is not supported"
TOP = "the embedded engine has no top_logprobs"
COUNT = "there is no /v1/messages/count_tokens"

# Chance decides these: they may pass.
SOMETIMES = {("openai", "responses")}
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
    ("openai", "echoed_logprobs"): ECHO,
    ("openai", "long_prompt"): OVERFLOW,
    ("openai", "refused"): "a permanent refusal is a 501",
    ("openai", "tools", "smol"): TURNS,
    ("openai", "responses_tools", "smol"): TURNS,
    ("llama-index", "tools", "smol"): TURNS,
    ("llama-index", "streamed_tools", "smol"): TURNS,
    ("llama-index", "streamed_structured", "smol"): SHOWN,
    ("pydantic-ai", "tools", "smol"): TURNS,
    ("pydantic-ai", "streamed_tools", "smol"): TURNS,
    ("openai-js", "tools", "smol"): TURNS,
    ("openai-js", "responses_tools", "smol"): TURNS,
    ("openai-agents", "free_tools", "demo"): "a free call may name a tool that is not offered",
    ("openai-agents", "tools", "smol"): TURNS,
    ("openai-agents", "streamed_tools", "smol"): TURNS,
    ("openai-agents", "free_tools", "smol"): SHOWN,
    ("openai-agents", "handoff", "smol"): TURNS,
    ("inspect-ai", "logprobs"): TOP,
    ("ai-js", "tools", "smol"): TURNS,
    ("ai-js", "streamed_tools", "smol"): TURNS,
    ("aider", "long_prompt"): OVERFLOW,
    ("inspect-ai", "long_prompt"): OVERFLOW,
    ("lm-eval", "choices"): ECHO,
    ("lm-eval", "choices_of_ids"): ECHO,
    ("lm-eval", "choices_of_the_server"): "there is no /tokenizer_info",
    ("lm-eval", "perplexity"): ECHO,
    ("guidellm", "stream"): USAGE,
    ("guidellm", "completions"): USAGE,
    ("aiperf", "chunk_usage"): USAGE,
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
