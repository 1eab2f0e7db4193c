"""The stages of processors: each turns a row's columns into further columns."""
