"""Writing results: part files while a job runs, and the output at its end."""
