"""Load tests of servers and of batch jobs: `penstock bench serve` and `penstock bench batch`."""
