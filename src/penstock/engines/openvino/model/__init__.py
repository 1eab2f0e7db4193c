"""A model's files: where they are, what they say, and how they are converted."""
