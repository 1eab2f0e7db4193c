"""Speech on the embedded engine, inside its worker process."""
