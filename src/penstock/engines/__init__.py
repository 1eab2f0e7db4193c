"""Engines: each runs one model. `base` has the protocol and the table; every other module is one
engine's home or a part shared by several.
"""
