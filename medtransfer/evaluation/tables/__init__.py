"""Tables of predictions and candidates, and the scores taken from them."""
