"""Everything that runs on Ray: Ray Serve applications, batch jobs on a cluster, and Ray Data."""
