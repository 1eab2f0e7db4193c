"""Stands in for SGLang, which needs a GPU: the part of it that Penstock uses, with the same
signatures.
"""
