"""A model's files: finding, reading and converting them."""
