"""The methods of a study in words that can be pasted into a paper, with the references they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Cited by the sentences below; authors, year, title, where.
REFERENCES = {
    "delong": "DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more correlated receiver operating characteristic curves. Biometrics 1988;44:837-845. doi:10.2307/2531595",
    "obuchowski": "Obuchowski NA. Nonparametric analysis of clustered ROC curve data. Biometrics 1997;53:567-578. doi:10.2307/2533958",
    "newcombe": "Newcombe RG. Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2. Stat Med 2006;25:559-573. doi:10.1002/sim.2324",
    "calibration": "Van Calster B, Nieboer D, Vergouwe Y, et al. A calibration hierarchy for risk models was defined. J Clin Epidemiol 2016;74:167-176. doi:10.1016/j.jclinepi.2015.12.005",
    "ici": "Austin PC, Steyerberg EW. The Integrated Calibration Index (ICI) and related metrics. Stat Med 2019;38:4051-4065. doi:10.1002/sim.8281",
    "corp": "Dimitriadis T, Gneiting T, Jordan AI. Stable reliability diagrams for probabilistic classifiers. PNAS 2021;118:e2016191118. doi:10.1073/pnas.2016191118",
    "ece": "Nixon J, Dusenberry M, Jerfel G, et al. Measuring calibration in deep learning. 2019. arXiv:1904.01685",
    "smece": "Błasiok J, Nakkiran P. Smooth ECE: principled reliability diagrams via kernel smoothing. ICLR 2024. arXiv:2309.12236",
    "temperature": "Guo C, Pleiss G, Sun Y, Weinberger KQ. On calibration of modern neural networks. ICML 2017. arXiv:1706.04599",
    "beta": "Kull M, Silva Filho T, Flach P. Beta calibration. AISTATS 2017; PMLR 54:623-631",
    "decision": "Vickers AJ, Elkin EB. Decision curve analysis. Med Decis Making 2006;26:565-574. doi:10.1177/0272989X06295361",
    "holm": "Holm S. A simple sequentially rejective multiple test procedure. Scand J Stat 1979;6:65-70",
    "fold": "Nadeau C, Bengio Y. Inference for the generalization error. Mach Learn 2003;52:239-281. doi:10.1023/A:1024068626366",
    "conformal": "Vovk V. Conditional validity of inductive conformal predictors. 2012. arXiv:1209.2673",
    "riley": "Riley RD, Debray TPA, Collins GS, et al. Minimum sample size for external validation of a clinical prediction model with a binary outcome. Stat Med 2021;40:4230-4251. doi:10.1002/sim.9025",
    "tripod": "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement. BMJ 2024;385:e078378. doi:10.1136/bmj-2023-078378",
    "claim": "Tejani AS, Klontzas ME, Gatti AA, et al. Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 update. Radiol Artif Intell 2024;6:e240300. doi:10.1148/ryai.240300",
    "monai": "Cardoso MJ, Li W, Brown R, et al. MONAI: an open-source framework for deep learning in healthcare. 2022. arXiv:2211.02701",
    "timm": "Wightman R. PyTorch image models. 2019. doi:10.5281/zenodo.4414861",
    "retinanet": "Lin TY, Goyal P, Girshick R, He K, Dollar P. Focal loss for dense object detection. ICCV 2017. arXiv:1708.02002",
    "pyramid": "Lin TY, Dollar P, Girshick R, He K, Hariharan B, Belongie S. Feature pyramid networks for object detection. CVPR 2017. arXiv:1612.03144",
    "atss": "Zhang S, Chi C, Yao Y, Lei Z, Li SZ. Bridging the gap between anchor-based and anchor-free detection via adaptive training sample selection. CVPR 2020. arXiv:1912.02424",
    "giou": "Rezatofighi H, Tsoi N, Gwak J, Sadeghian A, Reid I, Savarese S. Generalized intersection over union. CVPR 2019. doi:10.1109/CVPR.2019.00075",
    "coco": "Lin TY, Maire M, Belongie S, et al. Microsoft COCO: common objects in context. ECCV 2014. arXiv:1405.0312",
    "cpm": "van Ginneken B, Armato SG, de Hoop B, et al. Comparing and combining algorithms for computer-aided detection of pulmonary nodules in computed tomography scans: the ANODE09 study. Med Image Anal 2010;14:707-722. doi:10.1016/j.media.2010.05.005",
    "radimagenet": "Mei X, Liu Z, Robson PM, et al. RadImageNet. Radiol Artif Intell 2022;4:e210315. doi:10.1148/ryai.210315",
}


def write_methods(
    report: Mapping[str, Any], plans: Mapping[str, Any], environment: Mapping[str, Any], audit: Mapping[str, Any], study: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Paragraphs with numbered citations, and the references in their order.

    Args:
        report: `report.json`. plans, environment, audit: of the study, empty for foreign predictions. study: its configuration.
    """
    cited: list[str] = []

    def cite(*keys: str) -> str:
        for key in keys:
            if key not in cited:
                cited.append(key)
        return "[" + ", ".join(str(cited.index(key) + 1) for key in keys) + "]"

    paragraphs = []
    if environment:
        paragraphs += _training(report, plans, environment, audit, study, cite)
    if "detection" in report:
        paragraphs.append(_lesions(report["detection"], bool(environment), cite))
    paragraphs.append(_statistics(report, cite))
    return paragraphs, [REFERENCES[key] for key in cited]


def describe_budgets(study: Any, plans: Any) -> str:
    """The steps that arms were given, in words, from the configuration of a study and its plans; "" where all are probes, which have none."""
    budgets = {arm: study["arms"][arm].get("budget", 1) for arm, plan in plans.items() if plan["steps"]}
    if not budgets:
        return ""
    shared = next((plans[arm]["steps"] for arm, budget in budgets.items() if budget == 1), None)
    own = {arm: plans[arm]["steps"] for arm, budget in budgets.items() if budget != 1}
    said = [f"{arm}: {steps / shared:.3g} times as many" if shared else f"{arm}: {steps:,}" for arm, steps in own.items()]
    exceptions = f" ({', '.join(said)})" if said else ""
    return f"number of optimiser steps{exceptions}"


def _training(report: Any, plans: Any, environment: Any, audit: Any, study: Any, cite: Any) -> list[str]:
    versions, protocol = environment["versions"], study["protocol"]
    seeds, known = len(protocol["seeds"]), audit["patients_known"]
    who = "patients" if known else "images"
    units = [*(["patient"] if known else []), *(["cluster of near-duplicate images"] if protocol["group"] == "cluster" else [])]
    disjoint = f"disjoint by {' and by '.join(units)} and " if units else ""
    nameless = "" if known else " The source names no patients."
    tested = len(next(iter(report["arms"].values()))["auc"].get("by_fold", []))
    each = f"{tested} of them were" if 0 < tested < protocol["folds"] else "every fold was"
    if audit["flow"]["official_split"]:
        division = "The split of the source into training, tuning and test parts was kept."
    elif protocol.get("leave_out"):
        division = (
            f"Every {protocol['leave_out']} was tested once by models trained on the others, of whose {who} {100 * protocol['tune']:.0f} % were "
            "held back for early stopping, recalibration and thresholds."
        )
    else:
        division = (
            f"{who.capitalize()} were divided into {protocol['folds']} folds, {disjoint}stratified by label; {each} tested once by "
            f"models trained on the others, of whose {who} {100 * protocol['tune']:.0f} % were held back for early stopping, recalibration "
            "and thresholds."
        )
    first = (
        f"Models were trained with medtransfer {versions['medtransfer']} (PyTorch {versions['torch']}, MONAI {versions['monai']} {cite('monai')}, "
        f"timm {versions['timm']} {cite('timm')}). {division}{nameless} {f'Every training was repeated with {seeds} random seeds' if seeds > 1 else 'Every model was trained once, from one random seed'}. "
        f"Test {who} decided nothing."
    )
    arms = []
    for arm, entry in environment["arms"].items():
        plan, weights = plans.get(arm, {}), entry["weights"]["source"]
        if weights == "formulas":
            arms.append(f"{arm}: features by formula under a linear head")
            continue
        origin = f"{weights} weights" if weights and weights != "none" else "random weights"
        mei = f" {cite('radimagenet')}" if weights.startswith("radimagenet") else ""
        if not plan:
            frozen = "as configured"
        elif plan["strategy"] == "linear_probe":
            frozen = "all stages frozen under a linear head"
        else:
            frozen = f"{plan['frozen_stages']} of {plan['stages']} stages frozen ({plan['strategy']})"
        arms.append(f"{arm}: {entry['backbone']} from {origin}{mei}, {frozen}")
    detects = study.get("task") == "detection"
    second = f"The arms were {'; '.join(arms)}. All arms had the same {who}, folds and seeds."
    if budgets := describe_budgets(study, plans):
        second += (
            f" Those that were fine-tuned or trained from scratch had the same augmentation and {budgets}; the weights of the epoch "
            f"with the {'highest average precision' if detects else 'lowest log-loss'} on the tuning part were kept."
        )
    if any(plan["strategy"] == "linear_probe" for plan in plans.values()):
        second += " Linear heads are L2-penalised logistic regressions, the penalty chosen by cross-validation within the training part."
    if later := environment.get("added_later"):
        second += f" Of these, {' and '.join(later)} {'was' if len(later) == 1 else 'were'} added when the others had been evaluated."
    if not detects:
        second += " Classes were weighted in the loss, and the logits corrected for it, so that probabilities refer to the prevalence of the cohort."
    return [first, second]


def _lesions(found: Mapping[str, Any], trained: bool, cite: Any) -> str:
    text = ""
    if trained:
        text = (
            f"Lesions were detected by RetinaNet heads {cite('retinanet')} on a feature pyramid {cite('pyramid')}, trained with the focal loss and the "
            f"generalised overlap {cite('giou')} of the anchors that ATSS {cite('atss')} assigns to lesions; anchors were fitted to the boxes of the "
            "training part. "
        )
    hit = (
        "its centre lay within the box"
        if found["hit"]["rule"] == "centre"
        else f"it overlapped the lesion by {found['hit']['overlap']:g} or more"
    )
    return text + (
        f"A candidate was a hit where {hit}; every lesion can be found once. Detection was measured by average precision as in COCO {cite('coco')}, by "
        f"FROC and its mean over seven rates of false positives {cite('cpm')}, with intervals from bootstrap draws of patients."
    )


def _statistics(report: Mapping[str, Any], cite: Any) -> str:
    several, seeds = len(report["arms"]) > 1, report["seeds"] > 1
    models, arms = "models" if report.get("shift") else "seeds", report["arms"].values()
    between = f", with the variance between {models} added" if seeds else ""
    text = ""
    if report.get("shift"):
        text = (
            f"The trained models were tested as they are on a second cohort of {report['images']} {report['unit']}s, on which nothing was fitted; each "
            "was evaluated by itself, and figures are means over the models. "
        )
    text += (
        f"Discrimination was measured by the area under the ROC curve (AUC) with DeLong intervals on the logit scale {cite('delong')}, clustered by "
        f"patient where a patient has several images {cite('obuchowski')}, by Newcombe's method in very small samples {cite('newcombe')}{between}. "
        "Calibration was measured by calibration-in-the-large, calibration slope and observed / expected "
        f"{cite('calibration')}, the integrated calibration index {cite('ici')}, the expected calibration error, over at most 10 bins of as many {report['unit']}s each, beside its distribution under perfect "
        f"calibration {cite('ece')}, the smooth calibration error {cite('smece')}, and the Brier score in its parts {cite('corp')}. Other intervals are "
        f"from {report['bootstrap']} bootstrap draws of patients{between}. "
    )
    methods = sorted({entry["recalibrated"]["method"] for entry in report["arms"].values() if entry["recalibrated"]})
    if methods:
        text += f"Probabilities were recalibrated ({', '.join(methods)} {cite('temperature', *(['beta'] if 'beta' in methods else []))}) on tuning patients only. "
    if several:
        text += (
            f"Arms were compared on the same patients by the paired DeLong variance{f' plus the variance between {models}' if seeds else ''}, with a bootstrap over "
            f"patients beside it, corrected for the number of comparisons {cite('holm')}; within folds, by the corrected resampled t {cite('fold')}. "
        )
    if "decision_curves" in report:
        text += f"Decision curves show net benefit {cite('decision')}. "
    if any(point["rule"] != "probability" for entry in arms for point in entry["operating_points"]):
        text += "Thresholds were locked on tuning patients. "
    if any(entry["prediction_sets"] for entry in arms):
        text += f"Prediction sets are split-conformal by class {cite('conformal')}. "
    if (report.get("external_validation") or {}).get("patients"):
        text += f"Sizes for an external validation follow Riley et al. {cite('riley')}. "
    return text + f"Reporting was guided by the checklists of TRIPOD+AI {cite('tripod')} and CLAIM {cite('claim')}."
