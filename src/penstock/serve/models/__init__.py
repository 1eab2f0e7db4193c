"""Models behind a handle: loaded, admitted to, controlled."""
