"""What is asked of the predictions of one arm, and of several."""
