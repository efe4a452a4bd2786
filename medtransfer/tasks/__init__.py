"""What is learnt: heads, losses, and from logits to rows of the predictions table."""
