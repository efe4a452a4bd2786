"""Estimates, their variances, and the intervals that follow."""
