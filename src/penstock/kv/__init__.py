"""Moving KV caches between engines, and knowing what each engine has cached."""
