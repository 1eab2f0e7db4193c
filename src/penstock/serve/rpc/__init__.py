"""How an ingress and a replica speak."""
