"""Heads on the activations of a backbone."""
