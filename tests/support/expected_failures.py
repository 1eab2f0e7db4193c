"""Checks of tests/clients that are known to fail, and why."""

# Chance decides these: they may pass.
SOMETIMES: set[tuple[str, str]] = set()
# By client and check, and where a check fails on one model only, that model.
EXPECTED: dict[tuple[str, ...], str] = {
    ("inspect-ai", "logprobs"): "the embedded engine has no top_logprobs",
    ("langchain-openai", "logprobs"): "the embedded engine has no top_logprobs",
    ("lm-eval", "choices"): "echo gives no log-probabilities of the prompt",
    ("lm-eval", "choices_of_ids"): "echo gives no log-probabilities of the prompt",
    ("lm-eval", "perplexity"): "echo gives no log-probabilities of the prompt",
    ("openai", "echoed_logprobs"): "echo gives no log-probabilities of the prompt",
    ("openai", "logit_bias"): "logit_bias is not supported",
    ("openai", "logprobs"): "the embedded engine has no top_logprobs",
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
