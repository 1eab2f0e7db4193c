"""Writing results: the state directory while a job runs, and the output at its end."""
