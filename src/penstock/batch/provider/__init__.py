"""A job through a provider's own batch API: `--engine openai-batch` or `anthropic-batch`."""
