"""Generation in the worker process: each pipeline has a lane, with requests that wait and run."""
