"""A batch job: what it is to do, and how it is carried out."""
