from replica_cluster import cluster  # noqa: F401
