"""Does transfer learning help on my patients, by how much, and can I trust the probabilities?

The public names are imported when they are first used, so that `import medtransfer` and the command
line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtransfer.config import StudyConfig, load_config
    from medtransfer.data.audit import Audit, audit
    from medtransfer.data.cohort import Cohort
    from medtransfer.data.fingerprint import Fingerprint
    from medtransfer.data.image import Image
    from medtransfer.data.inspection import inspect_images
    from medtransfer.data.loading import ImageReader, fixed_transforms
    from medtransfer.data.phantom import write_phantom
    from medtransfer.data.reading import read_image
    from medtransfer.data.slices import Slices
    from medtransfer.data.split import Fold, Split, split_cohort
    from medtransfer.errors import MedTransferError
    from medtransfer.evaluation import EvaluationReport, evaluate, read_predictions
    from medtransfer.evaluation.detection import evaluate_boxes
    from medtransfer.evaluation.recalibration import adjust_prevalence
    from medtransfer.evaluation.sample_size import required_n
    from medtransfer.external import validate
    from medtransfer.models.backbone import Backbone
    from medtransfer.models.catalog import list_backbones, load_backbone
    from medtransfer.models.freeze import plan_freeze
    from medtransfer.models.plan import FreezePlan
    from medtransfer.record import Run
    from medtransfer.runs import fit
    from medtransfer.study import Arm, compare, run_study
    from medtransfer.tasks.classification import Classification
    from medtransfer.tasks.detection import Detection

__version__ = "0.1.0"

_HOMES = {
    "Arm": "medtransfer.study",
    "Audit": "medtransfer.data.audit",
    "Backbone": "medtransfer.models.backbone",
    "Classification": "medtransfer.tasks.classification",
    "Cohort": "medtransfer.data.cohort",
    "Detection": "medtransfer.tasks.detection",
    "EvaluationReport": "medtransfer.evaluation",
    "Fingerprint": "medtransfer.data.fingerprint",
    "Fold": "medtransfer.data.split",
    "FreezePlan": "medtransfer.models.plan",
    "Image": "medtransfer.data.image",
    "ImageReader": "medtransfer.data.loading",
    "MedTransferError": "medtransfer.errors",
    "Run": "medtransfer.record",
    "Slices": "medtransfer.data.slices",
    "Split": "medtransfer.data.split",
    "StudyConfig": "medtransfer.config",
    "adjust_prevalence": "medtransfer.evaluation.recalibration",
    "audit": "medtransfer.data.audit",
    "compare": "medtransfer.study",
    "evaluate": "medtransfer.evaluation",
    "evaluate_boxes": "medtransfer.evaluation.detection",
    "fit": "medtransfer.runs",
    "fixed_transforms": "medtransfer.data.loading",
    "inspect_images": "medtransfer.data.inspection",
    "list_backbones": "medtransfer.models.catalog",
    "load_backbone": "medtransfer.models.catalog",
    "load_config": "medtransfer.config",
    "plan_freeze": "medtransfer.models.freeze",
    "read_image": "medtransfer.data.reading",
    "read_predictions": "medtransfer.evaluation",
    "required_n": "medtransfer.evaluation.sample_size",
    "run_study": "medtransfer.study",
    "split_cohort": "medtransfer.data.split",
    "validate": "medtransfer.external",
    "write_phantom": "medtransfer.data.phantom",
}

__all__ = [
    "Arm",
    "Audit",
    "Backbone",
    "Classification",
    "Cohort",
    "Detection",
    "EvaluationReport",
    "Fingerprint",
    "Fold",
    "FreezePlan",
    "Image",
    "ImageReader",
    "MedTransferError",
    "Run",
    "Slices",
    "Split",
    "StudyConfig",
    "adjust_prevalence",
    "audit",
    "compare",
    "evaluate",
    "evaluate_boxes",
    "fit",
    "fixed_transforms",
    "inspect_images",
    "list_backbones",
    "load_backbone",
    "load_config",
    "plan_freeze",
    "read_image",
    "read_predictions",
    "required_n",
    "run_study",
    "split_cohort",
    "validate",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medtransfer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
