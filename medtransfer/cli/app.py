"""The verbs. Each imports what it calls, so that `--help` loads neither torch nor pandas."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medtransfer.errors import ConfigError, MedTransferError, StudyError
from medtransfer.text.names import show_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is twice as quick
    pretty_exceptions_enable=False,
    help="Does transfer learning help on my patients, by how much, and can I trust the "
    "probabilities?",
    epilog="Start with: medtransfer demo",
)


def _say(text: str, err: bool = False, nl: bool = True) -> None:
    """Prints a text; characters of names that would move the cursor, or turn text around, are shown
    as their codes.
    """
    typer.echo(show_text(text), err=err, nl=nl)


ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file; `medtransfer configs` lists examples.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as image.size=224.")
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the study; it must be new, or an unfinished run of the same study.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@app.command()
def demo(
    output: Output = Path("studies/demo"),
    patients: Annotated[int, typer.Option(min=30, help="Patients of the phantom cohort.")] = 150,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Volumes (DICOM series and NIfTI) in place of images.")
    ] = False,
    task: Annotated[
        str, typer.Option(help="classification: malignant or not; detection: where lesions are.")
    ] = "classification",
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Processes on this machine, which divide its cores."
        ),
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Run the main job on an embedded phantom cohort of DICOM images, or of volumes."""
    with _guard():
        from medtransfer.config.sections import CohortSection
        from medtransfer.config.study_config import configs_folder, load_config
        from medtransfer.data.phantom.planes import write_phantom
        from medtransfer.study.folder import check_folder

        # Beside the study, as the study folder itself is the record and holds no images.
        cohort = (
            output.with_name(f"{output.name}-cohort")
            if output.name
            else output.resolve().with_name(f"{output.resolve().name}-cohort")
        )
        if task not in {"classification", "detection"}:
            raise ConfigError(f"--task {task!r}: use classification or detection.")
        learnt: dict[str, Any] = (
            {"boxes": "boxes.csv"} if task == "detection" else {"labels": ("malignant",)}
        )
        section = CohortSection(manifest=cohort / "manifest.csv", root=cohort, **learnt)
        name = (
            f"demo{'_detection' if task == 'detection' else ''}{'_volumes' if volumes else ''}.yaml"
        )
        config = load_config(configs_folder() / name).model_copy(update={"cohort": section})
        check_folder(output, config)
        write_phantom(cohort, patients, volumes=volumes)
        _run(config, output, quiet, jobs)


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Manifest (CSV), folder of images or classes, MedMNIST archive, or YAML.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, where PATH is YAML."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that a manifest's images are relative to; its own where left out."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label column of a manifest; those of 0 and 1 where left out."),
    ] = None,
    positive: Annotated[str | None, typer.Option(help="The class that counts as 1.")] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="The folders below PATH are not classes.")
    ] = False,
    look_alikes: Annotated[
        str,
        typer.Option("--look-alikes", help="Of patients such as 7 and 007: ask, same, different."),
    ] = "ask",
    outside: Annotated[
        bool,
        typer.Option(
            "--outside", help="Read files outside the root, and links that lead out of it."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for check.html, with pictures, and check.json."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for what is wrong with a cohort, before anything is learnt from it. Exits with 1 where
    something needs a hand.
    """
    with _guard():
        from medtransfer.data.audit.audit import audit
        from medtransfer.data.audit.inspection import inspect_images
        from medtransfer.data.cohort.sources import open_cohort
        from medtransfer.progress import Reporter

        if path.suffix.lower() in {".yaml", ".yml"}:
            from medtransfer.config.study_config import load_config
            from medtransfer.study.settle import load_cohort

            config = load_config(path, overrides or ())
            if root is not None or label or positive is not None or flat or outside:
                raise ConfigError(
                    f"{path}: says itself what the cohort is; set cohort.KEY=VALUE instead of "
                    "options."
                )
            cohort, group, shortcuts = (
                load_cohort(config.cohort),
                config.protocol.group,
                config.audit.shortcuts,
            )
            look_alikes = config.cohort.look_alikes if look_alikes == "ask" else look_alikes
        elif overrides:
            raise ConfigError(
                f"{overrides[0]!r}: only a YAML file takes settings; see `medtransfer check "
                "--help`."
            )
        else:
            cohort, group, shortcuts = (
                open_cohort(path, root, label or (), positive, flat, outside),
                "patient",
                True,
            )
        if look_alikes not in {"ask", "same", "different"}:
            raise ConfigError(f"--look-alikes {look_alikes!r}: use ask, same or different.")
        cohort = cohort if look_alikes == "ask" else cohort.told_apart(look_alikes)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        with Reporter(quiet or as_json) as reporter:
            facts = inspect_images(cohort, reporter)
            cohort = cohort.fitted(facts)
            reporter.say("looking for what would make a result wrong")
            findings = audit(cohort, facts, group=group, shortcuts=shortcuts)
        _say(json.dumps(findings.to_dict(), indent=1) if as_json else str(findings))
        if output is not None:
            from medtransfer.data.audit.overlays import draw_boxes
            from medtransfer.report.sheet import build_sheet

            page = build_sheet(
                output,
                path.resolve().name,
                findings.to_dict(),
                _pictures(facts),
                _captions(cohort),
                draw_boxes(cohort),
            )
            _say(f"\nPage: {page}", err=as_json)
        elif not as_json:
            _say("\n--output FOLDER writes a page with the pictures.", err=True)
        if findings.actions:
            raise typer.Exit(1)


Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=1, help="Processes on this machine, which divide its cores."),
]


@app.command()
def compare(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Output = Path("studies/compare"),
    jobs: Jobs = 1,
    task: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of this task, from 0; it does its share of the runs and writes no report.",
        ),
    ] = 0,
    tasks: Annotated[
        int, typer.Option(min=1, help="Number of tasks that share the runs, as of a Slurm array.")
    ] = 1,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Write the report from the runs that are finished."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train every arm on the same patients and compare them: the main job."""
    with _guard():
        from medtransfer.config.study_config import load_config

        _run(load_config(config, overrides or ()), output, quiet, jobs, (task, tasks), report_only)


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a study.")] = None,
    overrides: Overrides = None,
    backbone: Annotated[str, typer.Option(help="Architecture, to plan without a cohort.")] = "",
    counts: Annotated[
        str, typer.Option(help="Patients per class in training, such as 399,147.")
    ] = "",
    domain: Annotated[
        str, typer.Option(help="near: colour photographs, histology; far: grey US, MR, CT.")
    ] = "far",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for plan.json, to edit before `compare` into it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much of the backbone would be frozen, and why. Trains nothing."""
    with _guard():
        if config is not None:
            from medtransfer.config.study_config import load_config
            from medtransfer.study.study import plan_study

            loaded = load_config(config, overrides or ())
            planned, size = plan_study(loaded), loaded.image.size
        else:
            planned, size = {backbone: _plan_from_counts(backbone, counts, domain)}, None
        plans = {name: plan for name, (plan, _) in planned.items()}
        if output is not None:
            from medtransfer.study.record import write_plans

            if (output / "study.yaml").is_file():
                raise StudyError(
                    f"{output}: holds a study; edit its plan.json. Choose another --output."
                )
            output.mkdir(parents=True, exist_ok=True)
            write_plans(plans, output / "plan.json")
            _say(
                f"{output / 'plan.json'} can be edited; `medtransfer compare` into {output} "
                "follows it.",
                err=True,
            )
        if as_json:
            answer = {name: p.to_dict() for name, p in plans.items()}
            _say(json.dumps(answer if config is not None else answer[backbone], indent=1))
            return
        from medtransfer.models.plan.describe import describe_plan

        for name, (p, network) in planned.items():
            _say("\n".join(describe_plan(name, p, network, size)))


Choices = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Such as margin=0.05, subgroups=[sex,site]."),
]


@app.command()
def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="CSV with patient, target, probability; or with --on, the folder of a study."
        ),
    ],
    choices: Choices = None,
    on: Annotated[
        Path | None,
        typer.Option(help="A second cohort (manifest, class folders, .npz) for a study's models."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that its images are relative to; the manifest's own where left out."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Its label column; the study's where left out.")
    ] = None,
    positive: Annotated[str | None, typer.Option(help="Its class that counts as 1.")] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(help="Of a detector: CSV with image, x0, y0, x1, y1, probability."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(help="The lesions they are to find: CSV with image, x0, y0, x1, y1."),
    ] = None,
    hit: Annotated[
        str, typer.Option(help="Of a lesion: overlap, or centre (of the candidate within its box).")
    ] = "overlap",
    overlap: Annotated[float, typer.Option(help="Least intersection over union of a hit.")] = 0.5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the page, tables and figures."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Evaluate the predictions of any model: AUC, calibration, decisions, and arm against arm."""
    with _guard():
        from medtransfer.config.study_config import make_choices, make_rule
        from medtransfer.evaluation import evaluate as evaluate_table

        if output is not None and output.is_file():
            raise StudyError(f"{output}: is a file. Choose another --output.")
        settings = make_choices({"bootstrap": bootstrap, "seed": seed}, choices or ())
        rule = make_rule({"hit": hit, "overlap": overlap})
        if (candidates is None) != (boxes is None) or (candidates is not None and on is not None):
            raise ConfigError("--candidates are judged against --boxes; give both, and no --on.")
        if on is not None:
            _validate(predictions, on, root, label, positive, output, settings, as_json)
            return
        if root is not None or label or positive is not None:
            raise ConfigError(
                "--root, --label and --positive describe a second cohort; name it with --on."
            )
        report = evaluate_table(predictions, **settings.model_dump())
        if candidates is not None and boxes is not None:
            from medtransfer.evaluation import EvaluationReport
            from medtransfer.evaluation.analyses.lesions import evaluate_boxes

            found = evaluate_boxes(
                predictions,
                candidates,
                boxes,
                settings.bootstrap,
                settings.seed,
                **rule.model_dump(),
            )
            report = EvaluationReport({**report.data, "detection": found})
        if output is not None:
            from medtransfer.report.build import build_report

            if (output / "study.yaml").is_file():
                raise StudyError(
                    f"{output}: holds a study, whose report would be overwritten. Choose another "
                    "--output."
                )
            output.mkdir(parents=True, exist_ok=True)
            report.save(output / "report.json")
            page = build_report(output)
        if as_json:
            _say(json.dumps(report.to_dict(), indent=1))
        else:
            _say(str(report))
            if output is not None:
                _say(f"\nReport: {page}")


def _validate(
    study: Path,
    on: Path,
    root: Path | None,
    label: list[str] | None,
    positive: str | None,
    output: Path | None,
    settings: Any,
    as_json: bool,
) -> None:
    from medtransfer.study.external import open_on, validate

    if output is None:
        raise ConfigError(
            "--on writes predictions, tables and a page; name their folder with --output."
        )
    cohort = open_on(study, on, root, label or (), positive)
    given = settings.model_dump(exclude_unset=True)
    report = validate(study, cohort, output, as_json, **given)
    _say(
        json.dumps(report.to_dict(), indent=1) if as_json else f"{report}\n\nReport: {report.page}"
    )


_BACKBONE_LINE = "{:<44} {:>8} {:>6} {:>5} {:>6} {:<6} {:<10} {}"


@app.command()
def backbones(
    pattern: Annotated[str, typer.Argument(help="Names as in a shell, such as '*resnet*'.")] = "*",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure on this machine, now; some seconds each.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only those with weights on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the architectures that can be transferred: what they cost, and where their weights come
    from.
    """
    with _guard():
        from medtransfer.models.catalog.measured import describe_backbones

        rows = [
            row for row in describe_backbones(pattern, measure) if row["offline"] or not offline
        ]
        if not rows:
            raise ConfigError(
                "no architecture matches "
                f"{pattern!r}{' with weights on this machine' if offline else ''}. Try '*resnet*'."
            )
        if as_json:
            _say(json.dumps(rows))
            return
        _say(
            _BACKBONE_LINE.format(
                "name", "M param.", "stages", "input", "GB", "speed", "here now", "weights"
            )
        )
        for row in rows:
            stages = "?" if row["stages"] is None else str(row["stages"]) if row["exact"] else "one"
            known = [
                row[key] if row[key] is not None else "?"
                for key in ("parameters", "memory_gb", "speed")
            ]
            more = (
                f" and {len(row['weights']) - 4} more (--json)" if len(row["weights"]) > 4 else ""
            )
            sources = (", ".join(row["weights"][:4]) or "-") + more
            cells = (
                row["name"],
                known[0],
                stages,
                row["input_size"],
                *known[1:],
                ", ".join(row["offline"]) or "-",
                sources,
            )
            _say(_BACKBONE_LINE.format(*map(str, cells)))
        _say(
            "\nGB: to train all of it on 32 images (8 volumes). Speed: of training, against "
            "resnet18. '?': not measured, use --measure."
        )


@app.command()
def configs(
    name: Annotated[str, typer.Argument(help="Print this example.")] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a configuration.")
    ] = False,
) -> None:
    """List the example configurations, print one, or print the schema."""
    with _guard():
        from medtransfer.config.study_config import StudyConfig, configs_folder

        files = {path.stem: path for path in sorted(configs_folder().glob("*.yaml"))}
        if schema:
            _say(json.dumps(StudyConfig.model_json_schema(), indent=1))
        elif not name:
            _say("\n".join(str(path) for path in files.values()))
        elif name.removesuffix(".yaml") in files:
            _say(files[name.removesuffix(".yaml")].read_text(encoding="utf-8"), nl=False)
        else:
            raise ConfigError(f"no example {name!r}. There are: {', '.join(files)}.")


def _run(
    config: Any,
    output: Path,
    quiet: bool,
    jobs: int,
    task: tuple[int, int] = (0, 1),
    report_only: bool = False,
) -> None:
    from medtransfer.study.results import failed_runs
    from medtransfer.study.study import run_study

    report = run_study(config, output, None, quiet, jobs, task, report_only)
    if report is not None:
        _say("\n".join(report.sentences))
        _say(f"\nReport: {report.page}")
    elif task[1] > 1:
        _say(
            f"Task {task[0]} of {task[1]} is done. After the last one: the same command with "
            "--report-only."
        )
    else:
        return  # a process that trains along with the one that reports
    flow = json.loads((output / "audit.json").read_text(encoding="utf-8"))["flow"]
    left_out = flow["images"] - flow["used"]
    if left_out:
        _say(
            f"{left_out} unreadable image(s) were left out; {output / 'audit.json'} lists them.",
            err=True,
        )
    failed = failed_runs(output)
    for line in failed:
        _say(f"Run failed: {line}", err=True)
    if left_out or failed:
        raise typer.Exit(3)


def _pictures(facts: Any) -> dict[str, Any]:
    return {
        image: picture
        for image, picture in zip(facts["image"], facts["picture"], strict=True)
        if picture is not None
    }


def _captions(cohort: Any) -> dict[str, str]:
    """Labels of each image; ids of patients are given or hashed, and shown as they are."""
    shown = cohort.images[["image", *cohort.labels]].set_index("image")
    if len(cohort.labels) > 1 and "classes" in cohort.source:
        return {
            image: ", ".join(label for label, value in row.items() if value == 1)
            for image, row in shown.iterrows()
        }
    return {
        image: ", ".join(f"{label} = {value:g}" for label, value in row.items())
        for image, row in shown.iterrows()
    }


def _plan_from_counts(backbone: str, counts: str, domain: str) -> Any:
    if not backbone or not counts:
        raise ConfigError(
            "give a CONFIG, or --backbone NAME with --counts N,N (patients per class in training)."
        )
    try:
        numbers = [int(part) for part in counts.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--counts {counts!r}: expected whole numbers such as 399,147."
        ) from error
    if len(numbers) < 2 or min(numbers) < 1:
        raise ConfigError(f"--counts {counts!r}: expected at least two counts, each at least 1.")
    if domain not in {"near", "far"}:
        raise ConfigError(f"--domain {domain!r}: use near or far.")
    from medtransfer.models.catalog.catalog import load_backbone
    from medtransfer.models.plan.rules import PlainCounts, plan_freeze

    classes = {str(index): number for index, number in enumerate(numbers)}
    network = load_backbone(backbone)
    return plan_freeze(PlainCounts(classes, domain), network, transfer=True), network  # type: ignore[arg-type]  # checked above


@contextmanager
def _guard() -> Iterator[None]:
    """One message instead of a traceback, and the exit codes of the design."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except MedTransferError as error:
        _say(f"medtransfer: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(
            f"medtransfer: {where}{error.strerror or error}. Check the path, its permissions and "
            "the free space.",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say(
            "medtransfer: interrupted. Run the same command again; what is finished is kept.",
            err=True,
        )
        raise typer.Exit(130) from None
    finally:
        # A script or notebook that has called a verb can be ended as before. None: a handler that
        # was not set from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    """SIGTERM, which batch systems send, is treated as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the command `medtransfer`."""
    app(prog_name="medtransfer")
