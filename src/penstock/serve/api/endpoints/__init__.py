"""The endpoints of the ingress, one file a family. `penstock.serve.api.routes` is the table of
them.
"""
