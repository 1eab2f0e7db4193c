"""A row on its way through a job."""
