"""Each metric once, with its influence function and its weighted form."""
