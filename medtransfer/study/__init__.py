"""From a configuration to trainings, tables and a report."""
