"""A job through a provider's own batch API, as `--engine openai-batch` or `anthropic-batch`."""
