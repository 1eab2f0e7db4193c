"""Batches and files of a server: jobs that its clients hand in over HTTP."""
