"""Files become arrays, arrays become batches. Imports nothing of models or evaluation."""
