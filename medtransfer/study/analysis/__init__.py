"""What the trained networks of a study looked at, missed and reused."""
