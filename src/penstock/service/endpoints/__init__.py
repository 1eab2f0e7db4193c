"""The routes of files, uploads and batches."""
