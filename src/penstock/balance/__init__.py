"""Load balancing between servers or replicas: pool, policies, circuit breaker, limiter, retries."""
