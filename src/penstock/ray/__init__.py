"""The Ray runtime, and all else that knows Ray: replicas on a cluster, jobs, Ray Data."""
