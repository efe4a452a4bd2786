"""Chains of stages, weights and freeze plans. Imports nothing of data or evaluation."""
