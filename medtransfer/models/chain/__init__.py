"""A backbone is an ordered chain of stages."""
