"""Numbers from a predictions table, in float64. Never imports torch."""

from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.evaluation.tables.predictions import read_predictions, write_predictions

__all__ = ["EvaluationReport", "evaluate", "read_predictions", "write_predictions"]
