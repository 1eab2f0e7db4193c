"""The words are those that servers use; what is tested is that they are understood."""

import pytest

from penstock.engines.remote.refusals import says_too_long
from penstock.errors import context_overflow

TOO_LONG = {
    "penstock": str(context_overflow(4096, 20009, 100)),
    "penstock uncounted": str(context_overflow(4096, None)),
    "penstock answer": str(context_overflow(4096, 15, 4096)),
    "vllm": (
        "This model's maximum context length is 4096 tokens. However, you requested 4242 tokens"
        " (4142 in the messages, 100 in the completion). Please reduce the length of the messages"
        " or completion."
    ),
    "vllm input": (
        "This model's maximum context length is 8192 tokens. However, your request has 8195 input"
        " tokens. Please reduce the length of the input messages."
    ),
    "vllm decoder": (
        "The decoder prompt (length 21535) is longer than the maximum model length of 16384. Make"
        " sure that `max_model_len` is no smaller than the number of text tokens."
    ),
    "vllm fit": (
        "The prompt (total length 25938) is too long to fit into the model (context length 4096)."
    ),
    "vllm rest": "max_tokens must be at least 1, got -47.",
    "vllm both": (
        "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context"
        " length is 1024 tokens and your request has 900 input tokens (500 > 1024 - 900)."
    ),
    "sglang": "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "sglang requested": (
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You"
        " requested a total of 5000 tokens: 4000 tokens from the input messages and 1000 tokens for"
        " the completion."
    ),
    "sglang pool": (
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens). Use a"
        " shorter input or enable --allow-auto-truncate."
    ),
    "llama.cpp": (
        "the request exceeds the available context size. try increasing the context size or enable"
        " context shift"
    ),
    "llama.cpp new": (
        "request (13392 tokens) exceeds the available context size (8192 tokens), try increasing it"
    ),
    "llama.cpp batch": "input is too large to process. increase the physical batch size",
    "llama.cpp larger": (
        "input (600 tokens) is larger than the max context size (512 tokens). skipping"
    ),
    "ollama": "the input length exceeds the context length",
    "ollama input": "input exceeds maximum context length",
    "ollama runner": "prompt too long; exceeded max context length by 12 tokens",
    "tgi": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 8740"
        " `inputs` tokens and 500 `max_new_tokens`"
    ),
    "tgi inputs": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168",
    "ovms": "Number of prompt tokens: 5000 exceeds model max length: 4096",
    "ovms both": (
        "Number of prompt tokens: 4000 + max tokens value: 500 exceeds model max length: 4096"
    ),
    "litellm": (
        "litellm.BadRequestError: litellm.ContextWindowExceededError: OpenAIException - Error"
        " code: 400"
    ),
    "litellm wraps": (
        "litellm.ContextWindowExceededError: ContextWindowExceededError: AnthropicError -"
        ' {"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long:'
        ' 209353 > 199999"}}'
    ),
    "openai": (
        "This model's maximum context length is 4097 tokens, however you requested 4226 tokens"
        " (3226 in your prompt; 1000 for the completion). Please reduce your prompt; or completion"
        " length."
    ),
    "openai window": (
        "Your input exceeds the context window of this model. Please adjust your input and try"
        " again."
    ),
    "openai configured": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in"
        " 509178 tokens. Please reduce the length of the messages."
    ),
    "openai string": (
        "Invalid 'messages[0].content': string too long. Expected a string with maximum length"
        " 1048576"
    ),
    "anthropic": "prompt is too long: 209353 tokens > 199999 maximum",
    "anthropic both": (
        "input length and `max_tokens` exceed context limit: 143653 + 64000 > 200000, decrease"
        " input length or `max_tokens` and try again"
    ),
    "groq size": (
        "Request too large for model `m`: Limit 6000, Requested 9000, please reduce your message"
        " size."
    ),
    "bedrock": "Input is too long for requested model.",
    "bedrock many": (
        "Too many input tokens. Max input tokens: 8192, request input token count: 9000"
    ),
    "gemini": (
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
    ),
    "mistral": (
        "Prompt contains 33000 tokens and 0 draft tokens, too large for model with 32768 maximum"
        " context length"
    ),
    "xai": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "groq": "Please reduce the length of the messages or completion.",
    "moonshot": "Invalid request: Your request exceeded model token limit: 8192",
    "dashscope": "Range of input length should be [1, 6000]",
    "perplexity": "The total length of all messages is too long.",
    "lm studio": (
        "The number of tokens to keep from the initial prompt is greater than the context length"
    ),
    "mlc": (
        "Prompt tokens exceed context window size: number of prompt tokens: 4276; context window"
        " size: 4096"
    ),
    "glm": "Prompt exceeds max length",
    "tei": "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
}
OTHERWISE = (
    "template error: roles must alternate",
    "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
    "max_tokens must be at least 1",
    "Rate limit reached for gpt-4 on tokens per min. Limit 10000, Used 9000, Requested 2000",
    "Invalid 'user': string too long. Expected a string with maximum length 64",
    "Invalid 'messages[3].name': string too long. Expected a string with maximum length 64",
    "The model `llama` does not exist",
    "temperature must be at most 2",
    "Unknown parameter: 'context_length'",
    "image is too large: 30 MB",
    "`inputs` cannot be empty",
    "prompt must be a string",
    "messages: at least one message is required",
    "max_completion_tokens exceeds the limit of 4096 for this model",
    "internal server error",
)


@pytest.mark.parametrize("said", TOO_LONG.values(), ids=TOO_LONG)
def test_what_servers_say_is_understood(said):
    assert says_too_long(said)
    assert says_too_long(said.upper())


@pytest.mark.parametrize(
    "name", ["context_length_exceeded", "exceed_context_size_error", "ContextWindowExceededError"]
)
def test_a_name_is_enough(name):
    assert says_too_long("no", name)


@pytest.mark.parametrize("said", OTHERWISE)
def test_other_complaints_are_others(said):
    assert not says_too_long(said, "invalid_request_error", "400")
