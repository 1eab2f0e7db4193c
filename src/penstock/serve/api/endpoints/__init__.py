"""The endpoints of the ingress, one file a family; `penstock.serve.api.routes` lists them."""
