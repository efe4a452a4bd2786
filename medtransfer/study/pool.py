"""Many runs on one machine or many: in this process, in several (joblib), or on a cluster (Ray). No
engine of our own.

A run that fails is listed and the others go on. One that was interrupted is taken up by the next
process that comes to it.
"""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import joblib
from joblib.externals.loky import process_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from medtransfer.errors import BusyError, ConfigError, MedTransferError
from medtransfer.progress import Reporter
from medtransfer.records.run import Run
from medtransfer.study.jobs import Job
from medtransfer.study.worker import Worker
from medtransfer.training.interruption import asked, finishing_steps, obey_note
from medtransfer.training.process import (
    keep_freed_memory,
    threads_of,
    training_settings,
    use_threads,
)

# Broken pools of processes until jobs are tried one by one, to see which one it is.
_BREAKS = 2
_LINE = "{:<24} {:>5} {:>8} {:>9} {:>8} {:>6} {:>7}"
# A finished run, why it failed, or that another process is at it.
Outcome = Run | str | None


def run_jobs(
    worker: Worker,
    jobs: Sequence[Job],
    workers: int,
    where: Literal["local", "ray"],
    reporter: Reporter,
) -> tuple[dict[Job, Run], dict[Job, str]]:
    """Does all jobs that are not finished.

    Args:
        worker: goes to every process.
        jobs: in the order in which they begin.
        workers: processes on this machine; 1: in this one.
        where: ray: on the cluster that `RAY_ADDRESS` names.
        reporter: progress.

    Returns:
        The runs, and why others failed.

    Raises:
        KeyboardInterrupt: what was under way is kept.
    """
    runs = {job: run for job in jobs if (run := worker.finished(job, reporter)) is not None}
    failures: dict[Job, str] = {}
    left = [job for job in jobs if job not in runs]
    if runs and left:
        reporter.say(f"{len(runs)} of {len(jobs)} runs are there already")
    if again := sum(job.folder(worker.folder).is_finished for job in left):
        reporter.say(
            f"{again} finished runs were made with another plan, code, library or device, and are "
            "done again"
        )
    make = _on_ray if where == "ray" else _in_processes if workers > 1 else _here
    begun = time.monotonic()

    def note(job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Run):
            runs[job] = outcome
        elif outcome is not None:
            failures[job] = outcome
        if outcome is not None:
            what = _describe(outcome) if isinstance(outcome, Run) else f"FAILED: {outcome}"
            reporter.say(f"run {len(runs) + len(failures)} of {len(jobs)}: {job}: {what}")

    with nullcontext() if make is _here else _passing_on(worker.folder.stop_note, reporter):
        for job, outcome in make(worker, left, workers, reporter):
            note(job, outcome)
    # Those that another program was at: waited for, and done if it gave up.
    for job, outcome in _here(
        worker,
        [job for job in left if job not in runs and job not in failures],
        workers,
        reporter,
        wait=True,
    ):
        note(job, outcome)
    if left:
        reporter.say(f"{len(left)} runs in {time.monotonic() - begun:.0f} s")
        for line in _summarise([run for job, run in runs.items() if job in left]):
            reporter.say(line)
    return {job: runs[job] for job in jobs if job in runs}, {
        job: failures[job] for job in jobs if job in failures
    }


@contextmanager
def _passing_on(note: Path, reporter: Reporter) -> Iterator[None]:
    """An end that is asked for of this process is asked for of those it began; they keep what they
    are at.
    """

    def pass_on() -> None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        reporter.say("ending: the steps under way are finished and kept")

    note.unlink(missing_ok=True)
    try:
        with finishing_steps(pass_on):
            yield
            if asked():
                raise KeyboardInterrupt
    finally:
        note.unlink(missing_ok=True)


def _describe(run: Run) -> str:
    summary = run.summary
    if not summary["epochs"]:
        return "a linear probe"
    waiting = (
        f", {100 * summary['waiting']:.0f} % waiting for data" if summary["waiting"] >= 0.01 else ""
    )
    speed = f"{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s{waiting}"
    return f"best epoch {summary['best_epoch']} of {summary['epochs']}, {speed}"


def _summarise(runs: Sequence[Run]) -> list[str]:
    """One line per arm: what its runs took."""
    lines = (
        [_LINE.format("arm", "runs", "seconds", "images/s", "waiting", "GB", "kJ")] if runs else []
    )
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run.summary for run in runs if run.arm == arm]
        trained = [summary for summary in own if summary["epochs"]]
        speed = (
            f"{statistics.median(s['images_per_second'] for s in trained):.0f}" if trained else "-"
        )
        waiting = (
            f"{100 * statistics.median(s['waiting'] for s in trained):.0f} %" if trained else "-"
        )
        memory = max(summary["memory_gb"] for summary in own)
        energy = [summary["joules"] for summary in own if summary["joules"] is not None]
        spent = f"{sum(energy) / 1000:.1f}" if energy else "-"
        lines.append(
            _LINE.format(
                arm,
                len(own),
                f"{sum(s['wall_seconds'] for s in own):.0f}",
                speed,
                waiting,
                f"{memory:.1f}",
                spent,
            )
        )
    return lines


def _attempt(worker: Worker, job: Job, reporter: Reporter, wait: bool) -> Outcome:
    try:
        return worker.do(job, reporter, wait)
    except BusyError:
        return None
    except MedTransferError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other runs go on
        if worker.engines[job.arm].share[1] > 1:
            raise  # the other processes of this training would wait for ever
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def _here(
    worker: Worker, jobs: Sequence[Job], workers: int, reporter: Reporter, wait: bool = False
) -> Iterator[tuple[Job, Outcome]]:
    use_threads(workers)
    for job in jobs:
        yield job, _attempt(worker, job, reporter, wait)


def _in_processes(
    worker: Worker, jobs: Sequence[Job], workers: int, reporter: Reporter
) -> Iterator[tuple[Job, Outcome]]:
    """Each process has its share of the cores. A process that is killed takes nothing with it but
    its run, which is begun again.
    """
    left, breaks = list(jobs), 0
    with TemporaryDirectory() as name:
        path = Path(name) / "worker"
        joblib.dump(worker, path)
        while left:
            alone = breaks >= _BREAKS
            batch = left[:1] if alone else left
            try:
                for job, outcome in _pool(
                    path, batch, 1 if alone else workers, threads_of(workers)
                ):
                    left.remove(job)
                    yield job, outcome
            except TerminatedWorkerError:
                breaks += 1
                if alone:
                    left.remove(batch[0])
                    yield (
                        batch[0],
                        (
                            "the process was killed, most likely for want of memory. Lower "
                            "--jobs or "
                            "train.batch_size."
                        ),
                    )
                else:
                    reporter.say(
                        "a process was killed, most likely for want of memory; its run begins again"
                    )


def _pool(
    path: Path, jobs: Sequence[Job], workers: int, threads: int
) -> Iterator[tuple[Job, Outcome]]:
    # Two workers at least: joblib runs a single one in this process.
    parallel = joblib.Parallel(
        max(2, workers),
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="all",
    )
    with joblib.parallel_config("loky", inner_max_num_threads=threads):
        yield from parallel(joblib.delayed(_in_worker)(path, job) for job in jobs)


def _in_worker(path: Path, job: Job) -> tuple[Job, Outcome]:
    # A worker that holds much more than at its first task is taken for one that leaks, and renewed;
    # a training does hold much, and a renewal between two tasks may leave both sides waiting.
    process_executor._MAX_MEMORY_LEAK_SIZE = 2**60
    return job, _begun_elsewhere(_read_worker(path), job, wait=False)


def _begun_elsewhere(worker: Worker, job: Job, wait: bool) -> Outcome:
    """A job in a process that another one has begun, and that ends when a note says so."""
    note = worker.folder.stop_note
    obey_note(note)
    keep_freed_memory()
    try:
        with training_settings(worker.engines[job.arm].device.type == "cuda"):
            return None if note.exists() else _attempt(worker, job, Reporter(quiet=True), wait)
    except KeyboardInterrupt:
        return None  # kept


@lru_cache(maxsize=1)
def _read_worker(path: Path) -> Worker:
    worker: Worker = joblib.load(path)
    return worker


def _on_ray(
    worker: Worker, jobs: Sequence[Job], workers: int, reporter: Reporter
) -> Iterator[tuple[Job, Outcome]]:
    """Tasks on a cluster whose nodes share the study's folder and the cache; a task whose node is
    lost begins again on another.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError('engine: ray needs Ray: pip install "medtransfer[ray]".') from error
    reporter.say(f"{len(jobs)} runs on Ray")
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True, log_to_driver=False)
    shared = ray.put(worker)
    on_cuda = any(engine.device.type == "cuda" for engine in worker.engines.values())
    task: Any = ray.remote(num_cpus=threads_of(workers), num_gpus=int(on_cuda), max_retries=-1)(
        _on_node
    )
    waiting: dict[Any, Job] = {task.remote(shared, job): job for job in jobs}
    while waiting:
        done, _ = ray.wait(
            list(waiting), num_returns=1, timeout=1.0
        )  # a signal is heard in between
        if not done:
            continue
        job = waiting.pop(done[0])
        try:
            yield job, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield job, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _on_node(worker: Worker, job: Job) -> Outcome:
    # A task that is begun again may find the lock of its lost self still held for a moment: it
    # waits.
    return _begun_elsewhere(worker, job, wait=True)
