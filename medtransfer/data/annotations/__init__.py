"""Lesion boxes as annotators write them."""
