"""The methods of a study in words that can be pasted into a paper, with the references they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Cited by the sentences below; authors, year, title, where.
REFERENCES = {
    "delong": "DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more correlated receiver operating characteristic curves. Biometrics 1988;44:837-845. doi:10.2307/2531595",
    "airola": "Airola A, Pahikkala T, Waegeman W, De Baets B, Salakoski T. An experimental comparison of cross-validation techniques for estimating the area under the ROC curve. Comput Stat Data Anal 2011;55:1828-1844. doi:10.1016/j.csda.2010.11.018",
    "ledell": "LeDell E, Petersen M, van der Laan M. Computationally efficient confidence intervals for cross-validated area under the ROC curve estimates. Electron J Stat 2015;9:1583-1607. doi:10.1214/15-EJS1035",
    "rockette": "Obuchowski NA, Rockette HE. Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests: an ANOVA approach with dependent observations. Commun Stat Simul Comput 1995;24:285-308. doi:10.1080/03610919508813243",
    "joint": "Miller ME, Hui SL, Tierney WM. Validation techniques for logistic regression models. Stat Med 1991;10:1213-1226. doi:10.1002/sim.4780100805",
    "debray": "Debray TPA, Damen JAAG, Snell KIE, et al. A guide to systematic review and meta-analysis of prediction model performance. BMJ 2017;356:i6460. doi:10.1136/bmj.i6460",
    "dunn": "Dunn R, Wasserman L, Ramdas A. Distribution-free prediction sets for two-layer hierarchical models. J Am Stat Assoc 2023;118:2491-2502. doi:10.1080/01621459.2022.2060112",
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
    "restarts": "Loshchilov I, Hutter F. SGDR: stochastic gradient descent with warm restarts. ICLR 2017. arXiv:1608.03983",
    "radimagenet": "Mei X, Liu Z, Robson PM, et al. RadImageNet. Radiol Artif Intell 2022;4:e210315. doi:10.1148/ryai.210315",
}


def write_methods(
    report: Mapping[str, Any],
    plans: Mapping[str, Any],
    environment: Mapping[str, Any],
    audit: Mapping[str, Any],
    study: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Paragraphs with numbered citations, and the references in their order.

    Args:
        report: `report.json`.
        plans: of the study, by arm; empty for foreign predictions.
        environment: of the study; empty for foreign predictions.
        audit: of the study; empty for foreign predictions.
        study: its configuration.
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
    budgets = {
        arm: _times(study["arms"][arm].get("budget"))
        for arm, plan in plans.items()
        if plan["steps"]
    }
    if not budgets:
        return ""
    shared = next((plans[arm]["steps"] for arm, budget in budgets.items() if budget == 1), None)
    other_steps = {arm: plans[arm]["steps"] for arm, budget in budgets.items() if budget != 1}
    exceptions_of = [
        f"{arm}: {steps / shared:.3g} times as many" if shared else f"{arm}: {steps:,}"
        for arm, steps in other_steps.items()
    ]
    level = [arm for arm, plan in plans.items() if plan.get("level")]
    exceptions_of += (
        [f"{' and '.join(level)}: up to four times as many, until the tune loss levelled off"]
        if level
        else []
    )
    exceptions = f" ({', '.join(exceptions_of)})" if exceptions_of else ""
    return f"number of optimiser steps{exceptions}"


def _times(budget: Any) -> float:
    """An arm's budget in budgets of the study; until level it begins with one."""
    return float(budget) if isinstance(budget, (int, float)) else 1.0


def _training(
    report: Any, plans: Any, environment: Any, audit: Any, study: Any, cite: Any
) -> list[str]:
    versions, protocol = environment["versions"], study["protocol"]
    seeds, names_patients = len(protocol["seeds"]), audit["patients_known"]
    who = "patients" if names_patients else "images"
    units = [
        *(["patient"] if names_patients else []),
        *(["cluster of near-duplicate images"] if protocol["group"] == "cluster" else []),
    ]
    disjoint = f"disjoint by {' and by '.join(units)} and " if units else ""
    nameless = "" if names_patients else " The source names no patients."
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
            frozen = (
                f"{plan['frozen_stages']} of {plan['stages']} stages frozen ({plan['strategy']})"
            )
        arms.append(f"{arm}: {entry['backbone']} from {origin}{mei}, {frozen}")
    detects = study.get("task") == "detection"
    second = f"The arms were {'; '.join(arms)}. All arms had the same {who}, folds and seeds."
    second += _schedule(study, plans, detects, cite)
    if any(plan["strategy"] == "linear_probe" for plan in plans.values()):
        second += " Linear heads are L2-penalised logistic regressions, the penalty chosen by cross-validation within the training part; before they were tested they were solved again with the tuning part, whose images were predicted by heads that were solved without them."
    if later := environment.get("added_later"):
        second += f" Of these, {' and '.join(later)} {'was' if len(later) == 1 else 'were'} added when the others had been evaluated."
    if not detects:
        second += " Classes were weighted in the loss, and the logits corrected for it, so that probabilities refer to the prevalence of the cohort."
    return [first, second]


def _schedule(study: Any, plans: Any, detects: bool, cite: Any) -> str:
    """How the arms were trained that were trained step by step."""
    budgets = describe_budgets(study, plans)
    if not budgets:
        return ""
    better = "1 minus the average precision" if detects else "the log-loss"
    text = (
        f" Those that were fine-tuned or trained from scratch had the same augmentation and {budgets}; the weights or their exponential moving "
        f"average were kept, whichever did better on the tuning part, at the end of training, or at an epoch where {better} on the tuning part "
        "was lower by more than 2 %."
    )
    if level := [arm for arm, plan in plans.items() if plan.get("level")]:
        text += (
            f" Training of {' and '.join(level)} went on with warm restarts {cite('restarts')}, each cycle as long as all before it, until one lowered "
            f"{better} on the tuning part by no more than 2 %, at most for four times the budget; arms were also compared as they were at the end of "
            "the common budget."
        )
    return text


def _lesions(detection: Mapping[str, Any], trained: bool, cite: Any) -> str:
    text = ""
    if trained:
        text = (
            f"Lesions were detected by RetinaNet heads {cite('retinanet')} on a feature pyramid {cite('pyramid')}, trained with the focal loss and the "
            f"generalised overlap {cite('giou')} of the anchors that ATSS {cite('atss')} assigns to lesions; anchors were fitted to the boxes of the "
            "training part. "
        )
    hit = (
        "its centre lay within the box"
        if detection["hit"]["rule"] == "centre"
        else f"it overlapped the lesion by {detection['hit']['overlap']:g} or more"
    )
    return text + (
        f"A candidate was a hit where {hit}; every lesion can be found once. Detection was measured by average precision as in COCO {cite('coco')}, by "
        f"FROC and its mean over seven rates of false positives {cite('cpm')}, candidates being ranked within a model and figures averaged over models by their "
        "lesions, with intervals by Student's t from bootstrap draws of patients; those of differences hold the variation between trainings as folds and seeds show it."
    )


def _statistics(report: Mapping[str, Any], cite: Any) -> str:
    arms = report["arms"].values()
    text = _discrimination(report, cite)
    sections = list(report["labels"].values()) if "labels" in report else [report]
    several = report.get("models", report["seeds"]) > 1
    beside = (
        ", and the intercepts of single models beside it, with a fifth of the level"
        if several
        else ""
    )
    text += (
        f"Calibration was measured by calibration-in-the-large, calibration slope{' (with an intercept for every model)' if several else ''} and observed / "
        f"expected {cite('calibration')}, intercept and slope being tested together {cite('joint')}{beside}; by the integrated calibration index {cite('ici')}, the expected calibration error, over at most 10 bins of as many {report['unit']}s each {cite('ece')}, "
        f"the smooth calibration error {cite('smece')} and the miscalibration part of the Brier score {cite('corp')}, each beside its distribution under perfect calibration. "
        f"{'These curves and errors are over all models together, whose errors may cancel there. ' if several else ''}Other intervals are by Student's t with standard errors "
        f"from {report['bootstrap']} bootstrap draws of patients{'; bands of curves hold no variance between trainings' if several else ''}. "
    )
    if report["unit"] == "patient":
        text += f"The images of a patient were joined by {'the mean of their logits' if report['aggregate'] == 'mean' else 'noisy-or' if report['aggregate'] == 'noisy_or' else 'their highest score'}, before recalibration. "
    methods = sorted({entry["recalibrated"]["method"] for entry in arms if entry["recalibrated"]})
    if methods:
        about = {"vector": "vector scaling", "by label": "by label"}
        named = ", ".join(about.get(method, method) for method in methods)
        text += (
            f"Probabilities were recalibrated ({named} {cite('temperature', *(['beta'] if 'beta' in methods else []))}) about the prevalence, for every model on the "
            "tuning patients of all models of its arm but those it is tested on"
            f"{'; the kind of map was chosen on all tuning patients' if report['settings']['recalibration'] == 'auto' and 'vector' not in methods else ''}. "
        )
    text += _comparisons(report, cite)
    if "decision_curves" in sections[0]:
        at = sorted({f"{part['decision_curves']['prevalence']:.3g}" for part in sections})
        where = f"a prevalence of {at[0]}" if len(at) == 1 else "the prevalence of each label"
        text += f"Decision curves show net benefit {cite('decision')} at {where}. "
    points = [
        point
        for part in sections
        for entry in part["arms"].values()
        for point in entry["operating_points"]
    ]
    if any(point["rule"] != "probability" for point in points):
        text += "Thresholds were locked on tuning patients, with the rank that reaches the aim on average. "
    if any(entry["prediction_sets"] for part in sections for entry in part["arms"].values()):
        text += f"Prediction sets are split-conformal by class {cite('conformal')}, the images of a patient sharing its weight {cite('dunn')}. "
    if any((part.get("external_validation") or {}).get("patients") for part in sections):
        text += f"Sizes for an external validation follow Riley et al. {cite('riley')}. "
    return (
        text
        + f"Reporting was guided by the checklists of TRIPOD+AI {cite('tripod')} and CLAIM {cite('claim')}."
    )


def _newcombe(report: Mapping[str, Any]) -> bool:
    parts = [report, *report.get("labels", {}).values()]
    return any(
        str(entry["auc"].get("method", "")).startswith("Newcombe")
        for part in parts
        for entry in part["arms"].values()
    )


def _discrimination(report: Mapping[str, Any], cite: Any) -> str:
    text, seeds, given = "", report["seeds"] > 1, report["settings"].get("models") == "given"
    if report.get("shift"):
        text = (
            f"The trained models were tested as they are on a second cohort of {report['images']} {report['unit']}s, on which nothing was fitted; "
            "figures are means over the models, and intervals are over its patients alone. "
        )
    between = (
        ", with the variance between seeds, without what these share with patients, added"
        if seeds and not given
        else ""
    )
    several = report.get("models", report["seeds"]) > report["seeds"]
    small = (
        f", by Newcombe's method where a class is very small {cite('newcombe')}"
        if _newcombe(report)
        else ""
    )
    within = (
        f" of {report['unit']}s scored by the same model, averaged over models by their numbers of pairs {cite('airola', 'ledell')}"
        if several or "labels" in report
        else ""
    )
    text += (
        f"Discrimination was measured by the area under the ROC curve (AUC){within}, with DeLong intervals on the logit scale {cite('delong')}, clustered by "
        f"patient where a patient has several images {cite('obuchowski')}{small}{between}{' ' + cite('rockette') if between else ''}. "
    )
    if "labels" in report:
        several_labels = (
            "classes that exclude each other"
            if any("accuracy" in entry for entry in report["arms"].values())
            else "labels"
        )
        text += f"The {len(report['labels'])} {several_labels} were evaluated one against the rest and averaged (macro average). "
    if sites := report["settings"].get("leave_out"):
        text += f"Figures over {sites}s are by random effects (Paule-Mandel, Hartung-Knapp), with an interval for a new one {cite('debray')}. "
    return text


def _comparisons(report: Mapping[str, Any], cite: Any) -> str:
    if len(report["arms"]) < 2:
        return ""
    covers = {entry["delta_auc"]["covers"] for entry in report["comparisons"]}
    how = (
        "with the variation between trainings as seeds and folds show it, by Student's t with their degrees of freedom"
        if covers == {"training"}
        else "over sites, by random effects"
        if covers == {"sites"}
        else "over patients, the trained models taken as given"
    )
    text = f"Arms were compared on the same patients by the paired difference in AUC within models, {how}, with a bootstrap beside it; p-values are for this difference alone"
    text += (
        f", corrected for the number of comparisons {cite('holm')}. "
        if len(report["comparisons"]) > 1
        else ". "
    )
    if any(entry["delta_auc"].get("folds") for entry in report["comparisons"]):
        text += f"An interval corrected for overlapping training sets {cite('fold')}, which is wider than needed where trainings vary for other reasons, is shown beside it. "
    return text
