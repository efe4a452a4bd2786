"""What a study leaves on the disk: the only package that spells the names of its files."""
