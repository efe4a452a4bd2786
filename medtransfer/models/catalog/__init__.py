"""From the name of an architecture to a backbone."""
