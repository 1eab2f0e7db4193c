"""LoRA adapters: found, copied, loaded."""
