"""The state directory of a job: what a crash leaves, and a resumed job needs."""
