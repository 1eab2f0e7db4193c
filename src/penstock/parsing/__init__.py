"""Reading what users give, with errors in words of our own."""
