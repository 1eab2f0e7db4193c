"""The endpoints of the ingress, one file a family. `penstock.serve.routes` is the table of them."""
