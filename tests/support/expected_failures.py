"""Checks of tests/clients that are known to fail, and why."""

TURNS = "templates without tools cannot take an assistant's turn that only calls a tool"
SHOWN = "templates without tools are refused unless a call is forced"
ECHO = "echo gives no log-probabilities of the prompt"
USAGE = "continuous_usage_stats is not supported"
LIMIT = "max_tokens beyond the context is not cut to what is left"
TOP = "the embedded engine has no top_logprobs"
COUNT = "there is no /v1/messages/count_tokens"

# Chance decides these: they may pass.
SOMETIMES = {("openai", "responses")}
# By client and check, and where a check fails on one model only, that model.
EXPECTED = {
    ("ai-js", "streamed_tools", "smol"): TURNS,
    ("ai-js", "tools", "smol"): TURNS,
    ("aiperf", "chunk_usage"): USAGE,
    ("anthropic", "count_tokens"): COUNT,
    ("anthropic", "much_to_say"): LIMIT,
    ("anthropic", "prefill", "demo"): "an assistant's last message is not continued",
    ("anthropic", "streamed_tools", "smol"): TURNS,
    ("anthropic", "thinking"): "thinking is refused",
    ("anthropic", "tools", "smol"): TURNS,
    ("autogen", "streamed_tools", "smol"): TURNS,
    ("autogen", "tools", "smol"): TURNS,
    ("guidellm", "completions"): USAGE,
    ("guidellm", "stream"): USAGE,
    ("haystack", "streamed_tools", "smol"): TURNS,
    ("haystack", "tools", "smol"): TURNS,
    ("inspect-ai", "logprobs"): TOP,
    ("inspect-ai", "tools", "smol"): TURNS,
    ("langchain-anthropic", "count_tokens"): COUNT,
    ("langchain-anthropic", "page"): LIMIT,
    ("langchain-anthropic", "tools", "smol"): TURNS,
    ("langchain-openai", "logprobs"): TOP,
    ("langchain-openai", "responses_tools", "smol"): TURNS,
    ("langchain-openai", "streamed_tools", "smol"): TURNS,
    ("langchain-openai", "tools", "smol"): TURNS,
    ("litellm", "anthropic_tools", "smol"): TURNS,
    ("litellm", "rerank"): "there is no /rerank",
    ("litellm", "tools", "smol"): TURNS,
    ("llama-index", "streamed_structured", "smol"): SHOWN,
    ("llama-index", "streamed_tools", "smol"): TURNS,
    ("llama-index", "tools", "smol"): TURNS,
    ("llm", "tools", "smol"): SHOWN,
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
    ("openai", "much_to_say"): LIMIT,
    ("openai", "responses"): "the numbers of events in a response's stream are out of order",
    ("openai", "responses_tools", "smol"): TURNS,
    ("openai", "token_embeddings"): "token ids are not embedded",
    ("openai", "tools", "smol"): TURNS,
    ("openai-agents", "free_tools", "demo"): "a free call may name a tool that is not offered",
    ("openai-agents", "free_tools", "smol"): SHOWN,
    ("openai-agents", "handoff", "smol"): TURNS,
    ("openai-agents", "streamed_tools", "smol"): TURNS,
    ("openai-agents", "tools", "smol"): TURNS,
    ("openai-js", "responses_tools", "smol"): TURNS,
    ("openai-js", "tools", "smol"): TURNS,
    ("pydantic-ai", "streamed_tools", "smol"): TURNS,
    ("pydantic-ai", "tools", "smol"): TURNS,
    ("semantic-kernel", "tools", "smol"): TURNS,
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
