"""Numbers from a predictions table, in float64. Never imports torch."""
