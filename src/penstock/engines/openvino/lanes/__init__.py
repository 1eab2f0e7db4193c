"""Generation in the worker process: a lane a pipeline, its requests, images and shared steps."""
