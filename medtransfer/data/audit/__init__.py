"""What a cohort holds, and what is wrong with it."""
