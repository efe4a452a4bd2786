"""What of a backbone is trained, and how fast."""
