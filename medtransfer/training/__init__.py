"""How it is learnt: the convex head, then one loop for every arm."""
