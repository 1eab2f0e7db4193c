"""LoRA adapters: finding, caching and loading them."""
