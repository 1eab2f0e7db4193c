"""What an ingress keeps between requests: responses and conversations, in one SQLite file."""
