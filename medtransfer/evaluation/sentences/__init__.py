"""The sentences of a report. Each says no more than its interval does."""
