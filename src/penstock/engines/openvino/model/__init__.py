"""A model's files: found (`source`), read (`files`), and converted to OpenVINO's format."""
