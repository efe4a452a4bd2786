"""Pictures and pages from the files of a study folder. Computes no statistic."""
