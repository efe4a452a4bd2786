"""From a file to an image: an array, its spacing and its history."""
