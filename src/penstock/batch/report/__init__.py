"""The report of a job: what was observed of its rows, as one HTML page."""
