"""Models and adapters on this machine's disk: where they come from, and what is kept of them."""
