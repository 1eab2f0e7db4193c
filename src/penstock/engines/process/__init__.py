"""An engine in a child process: the pipe, its messages, and both ends of a process's life."""
