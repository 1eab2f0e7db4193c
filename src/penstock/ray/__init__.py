"""Runtimes: where servers live. `local` is this process, `placement` the arithmetic of resource
bundles.
"""
