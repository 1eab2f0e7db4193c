"""What becomes of each parameter of a request, and how it is named."""
