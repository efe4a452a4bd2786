"""Numbers from a predictions table, in float64. Never imports torch."""

from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.predictions import read_predictions, write_predictions
from medtransfer.evaluation.result import EvaluationReport

__all__ = ["EvaluationReport", "evaluate", "read_predictions", "write_predictions"]
