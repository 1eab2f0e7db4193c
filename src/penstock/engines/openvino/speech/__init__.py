"""Speech on the embedded engine: `hearing`, `recording` and `speaking` run in its worker process,
`pieces` in the engine's.
"""
