"""From an image to what a network is given."""
