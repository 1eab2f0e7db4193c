"""Other libraries' names and forms, for programs that were written for them."""
