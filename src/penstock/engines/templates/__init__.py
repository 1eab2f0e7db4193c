"""Chat templates: how a model wants its conversations written."""
