"""Decisions over a data set: the questions as users write them, and the calibration of answers."""
