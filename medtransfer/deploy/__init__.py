"""A finished run meets images: where it looked."""
