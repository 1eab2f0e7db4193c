"""Values: what each becomes in an output, and back."""
