"""The embedded default cohort."""
