"""Does transfer learning help on my patients, by how much, and can I trust the probabilities?

The public names are imported when they are first used, so that `import medtransfer` and the command
line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtransfer.config.arm import Arm
    from medtransfer.config.study_config import StudyConfig, load_config
    from medtransfer.data.audit.audit import Audit, audit
    from medtransfer.data.audit.fingerprint import Fingerprint, fingerprint
    from medtransfer.data.audit.inspection import inspect_images
    from medtransfer.data.cohort.cohort import Cohort
    from medtransfer.data.cohort.split import Fold, Split, split_cohort
    from medtransfer.data.grid.monai import ImageReader, fixed_transforms
    from medtransfer.data.grid.settings import Augment, ImageSettings
    from medtransfer.data.grid.slices import Slices
    from medtransfer.data.images.image import Image
    from medtransfer.data.images.reading import read_image
    from medtransfer.data.phantom.planes import write_phantom
    from medtransfer.errors import MedTransferError
    from medtransfer.evaluation.analyses.lesions import evaluate_boxes
    from medtransfer.evaluation.analyses.sample_size import required_n
    from medtransfer.evaluation.evaluate import evaluate
    from medtransfer.evaluation.metrics.recalibration import adjust_prevalence
    from medtransfer.evaluation.result import EvaluationReport
    from medtransfer.evaluation.tables.predictions import read_predictions
    from medtransfer.inference.ensemble import Ensemble, load_model
    from medtransfer.inference.model import TrainedModel
    from medtransfer.models.catalog.catalog import list_backbones, load_backbone
    from medtransfer.models.chain.backbone import Backbone
    from medtransfer.models.plan.plan import FreezePlan
    from medtransfer.models.plan.rules import plan_freeze
    from medtransfer.records.run import Run
    from medtransfer.study.external import validate
    from medtransfer.study.run import fit
    from medtransfer.study.study import compare, run_study
    from medtransfer.tasks.classification import Classification
    from medtransfer.tasks.detection import Detection
    from medtransfer.training.settings import TrainSettings

__version__ = "0.1.0"

_HOMES = {
    "Arm": "medtransfer.config.arm",
    "Audit": "medtransfer.data.audit.audit",
    "Augment": "medtransfer.data.grid.settings",
    "Backbone": "medtransfer.models.chain.backbone",
    "Classification": "medtransfer.tasks.classification",
    "Cohort": "medtransfer.data.cohort.cohort",
    "Detection": "medtransfer.tasks.detection",
    "Ensemble": "medtransfer.inference.ensemble",
    "EvaluationReport": "medtransfer.evaluation.result",
    "Fingerprint": "medtransfer.data.audit.fingerprint",
    "Fold": "medtransfer.data.cohort.split",
    "FreezePlan": "medtransfer.models.plan.plan",
    "Image": "medtransfer.data.images.image",
    "ImageReader": "medtransfer.data.grid.monai",
    "ImageSettings": "medtransfer.data.grid.settings",
    "MedTransferError": "medtransfer.errors",
    "Run": "medtransfer.records.run",
    "Slices": "medtransfer.data.grid.slices",
    "Split": "medtransfer.data.cohort.split",
    "StudyConfig": "medtransfer.config.study_config",
    "TrainSettings": "medtransfer.training.settings",
    "TrainedModel": "medtransfer.inference.model",
    "adjust_prevalence": "medtransfer.evaluation.metrics.recalibration",
    "audit": "medtransfer.data.audit.audit",
    "compare": "medtransfer.study.study",
    "evaluate": "medtransfer.evaluation.evaluate",
    "evaluate_boxes": "medtransfer.evaluation.analyses.lesions",
    "fingerprint": "medtransfer.data.audit.fingerprint",
    "fit": "medtransfer.study.run",
    "fixed_transforms": "medtransfer.data.grid.monai",
    "inspect_images": "medtransfer.data.audit.inspection",
    "list_backbones": "medtransfer.models.catalog.catalog",
    "load_backbone": "medtransfer.models.catalog.catalog",
    "load_config": "medtransfer.config.study_config",
    "load_model": "medtransfer.inference.ensemble",
    "plan_freeze": "medtransfer.models.plan.rules",
    "read_image": "medtransfer.data.images.reading",
    "read_predictions": "medtransfer.evaluation.tables.predictions",
    "required_n": "medtransfer.evaluation.analyses.sample_size",
    "run_study": "medtransfer.study.study",
    "split_cohort": "medtransfer.data.cohort.split",
    "validate": "medtransfer.study.external",
    "write_phantom": "medtransfer.data.phantom.planes",
}

__all__ = [
    "Arm",
    "Audit",
    "Augment",
    "Backbone",
    "Classification",
    "Cohort",
    "Detection",
    "Ensemble",
    "EvaluationReport",
    "Fingerprint",
    "Fold",
    "FreezePlan",
    "Image",
    "ImageReader",
    "ImageSettings",
    "MedTransferError",
    "Run",
    "Slices",
    "Split",
    "StudyConfig",
    "TrainSettings",
    "TrainedModel",
    "adjust_prevalence",
    "audit",
    "compare",
    "evaluate",
    "evaluate_boxes",
    "fingerprint",
    "fit",
    "fixed_transforms",
    "inspect_images",
    "list_backbones",
    "load_backbone",
    "load_config",
    "load_model",
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
