"""A running job, seen and steered from other processes."""
