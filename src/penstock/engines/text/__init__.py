"""What engines that work on text and tokens share: templates, checks, stop strings."""
