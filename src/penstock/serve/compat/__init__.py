"""The names of `ray.serve.llm` with Ray's signatures, over Penstock's own servers and ingress."""
