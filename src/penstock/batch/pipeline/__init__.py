"""What answers the rows of a job: its pipeline, cascades, and processors with their stages."""
