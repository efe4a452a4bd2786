"""Which images there are, whose they are, what their label is, and which part they belong to."""
