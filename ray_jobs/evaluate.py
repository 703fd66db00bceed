"""The evaluation of models: on Ray tasks, by one process beside this one, or in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from causal_core.checkpoints.contents import CONFIG, verify_checkpoint
from causal_core.config import Config, run_directory
from causal_core.config_file import load_config
from causal_core.config_sections import FLOAT32, Products
from causal_core.errors import RunFailedError, UserError
from causal_core.evaluation.row_by_row import compare_sets
from causal_core.evaluation.rows import RowResult, to_records
from causal_core.evaluation.subject import Subject
from causal_core.evaluation.summary import aggregate, examples
from causal_core.evaluation.trace import write_rows
from causal_core.files import METRICS_FILE, read_records, write_whole
from causal_core.loss.objective import is_contrastive
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.run_data import encoder_source, load_test_set
from ray_jobs.training.process import WorkerFailedError, WorkerProcess, worker_process
from ray_jobs.training.ray_session import ray_session, worker_threads
from ray_jobs.training.ray_words import account_kept, failure_kept, root_cause
from ray_jobs.training.worker import evaluate_shard, evaluation_worker
from ray_jobs.training.worker_log import WorkerLog

PROGRESS = ".evaluation.progress"
_EXAMPLES = 10
_LOOK_SECONDS = 0.25

DESCRIPTIONS = {
    "base": "the model before training",
    "control": "the control, trained without a defence",
    "trained": "this run",
}


@dataclass(frozen=True)
class Found:
    """What an evaluation found on every row, and in which type its products were (`matmul`)."""

    rows: dict[str, dict[str, list[RowResult]]]  # by model and test set
    matmul: Products

    def joined(self, other: Found) -> Found:
        """This, and what the other one has; this alone where theirs are of another type."""
        if other.matmul != self.matmul:
            return self
        models = {**self.rows, **other.rows}
        both = {m: {**self.rows.get(m, {}), **other.rows.get(m, {})} for m in models}
        return Found(both, self.matmul)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {m: {k: to_records(v) for k, v in sets.items()} for m, sets in self.rows.items()}
        return {"rows": rows, "matmul": self.matmul}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Found:
        rows = {
            model: {name: [RowResult(**row) for row in rows] for name, rows in sets.items()}
            for model, sets in values["rows"].items()
        }
        return cls(rows, values["matmul"])


def evaluate(
    config: Config,
    subjects: Sequence[Subject],
    trace: Path | None = None,
    known: Found | None = None,
) -> dict[str, Any]:
    """Evaluates models on all test sets of the config.

    Args:
        trace: A Parquet file to write every row's prompts, answers and scores to.
        known: Of models that were evaluated before; used where it is of the same type.

    Returns:
        Metrics by model and test set, and examples (see `causal_core.evaluation.rows`).

    Raises:
        UserError: no test set, or one of which the models' tokenizers leave different rows.
    """
    datasets = datasets_of(config, subjects)
    all_rows = _all_rows(config, subjects, datasets, known)
    found = {
        subject.name: {name: all_rows.rows[subject.name][name] for name in datasets[subject.name]}
        for subject in subjects
    }
    if trace is not None:
        write_rows(trace, datasets, found, all_rows.matmul)
    first = next(iter(datasets.values()))  # texts, which are the same for all
    return {
        "models": {
            model: {"sets": {name: aggregate(rows) for name, rows in sets.items()}}
            for model, sets in found.items()
        },
        "matmul": all_rows.matmul,
        "descriptions": {subject.name: subject.description for subject in subjects},
        "paired": compare_sets(found),
        "examples": examples(first, found, _EXAMPLES),
    }


def left_to_evaluate(
    config: Config, subjects: Sequence[Subject], known: Found | None
) -> list[Subject]:
    """Those of which not every test set is known, in a type that the config allows."""
    if known is None or config.evaluated_products() not in ("auto", known.matmul):
        return list(subjects)
    return [s for s in subjects if not set(config.data.test) <= set(known.rows.get(s.name, {}))]


def _all_rows(
    config: Config,
    subjects: Sequence[Subject],
    datasets: Mapping[str, Mapping[str, TripletDataset]],
    known: Found | None,
) -> Found:
    left = left_to_evaluate(config, subjects, known)
    if not left and known is not None:
        return known
    found = _rows(config, left, datasets)
    if known is None or len(left) == len(subjects):
        return found
    if found.matmul == known.matmul:
        return known.joined(found)
    # Another machine's, or measured again: what stands side by side is of one type.
    return _rows(config, subjects, datasets)


def evaluated_rows(config: Config, checkpoints: Mapping[str, Path | None]) -> Found:
    """Every row's answers and scores, for checkpoints of one model.

    Args:
        checkpoints: Model name -> checkpoint directory; None is the base model itself.
    """
    subjects = subjects_of(config, checkpoints)
    return _rows(config, subjects, datasets_of(config, subjects))


def subjects_of(config: Config, checkpoints: Mapping[str, Path | None]) -> list[Subject]:
    """The base model of a config and checkpoints of runs that trained it with the same adapter.

    Raises:
        UserError: a checkpoint that is missing, damaged or of another model.
    """
    check_checkpoints(checkpoints)
    return [
        Subject(
            name,
            config,
            checkpoint=checkpoint,
            head_trained=checkpoint is not None and has_trained_head(config, name, checkpoint),
            description=DESCRIPTIONS.get(name, name),
        )
        for name, checkpoint in checkpoints.items()
    ]


def _rows(
    config: Config,
    subjects: Sequence[Subject],
    datasets: Mapping[str, Mapping[str, TripletDataset]],
) -> Found:
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    progress = directory / PROGRESS
    progress.unlink(missing_ok=True)
    # No more than there are rows: each is a task that loads the model.
    sets = next(iter(datasets.values()))
    most = max((len(dataset) for dataset in sets.values()), default=1)
    shards = max(1, min(config.resources.max_workers, most))
    jobs = [
        {
            "config": config.model_dump(mode="json"),
            "subjects": [subject.to_plain() for subject in subjects],
            "threads": worker_threads(config),
            "shard": shard,
            "shards": shards,
            "progress": str(progress),
            "directory": str(directory),
        }
        for shard in range(shards)
    ]
    with worker_process(config) as process:
        if config.resources.max_workers == 0:
            parts = [evaluate_shard(jobs[0])]
        elif process is not None:
            parts = [_alone(config, jobs[0], process)]
        else:
            parts = _on_ray(config, jobs)
    progress.unlink(missing_ok=True)
    if len(types := {part["matmul"] for part in parts}) > 1:
        raise UserError(
            "evaluation.matmul=auto: the workers' processors differ, some took products in "
            "bfloat16 and some did not, so their rows are not one result: set "
            "evaluation.matmul=float32"
        )
    rows = {
        subject.name: {
            name: sorted(
                (
                    RowResult(**record)
                    for part in parts
                    for record in part["rows"][subject.name][name]
                ),
                key=lambda row: (row.index, row.injection or 0),
            )
            for name in sets
        }
        for subject in subjects
    }
    return Found(rows, types.pop())


def datasets_of(
    config: Config, subjects: Sequence[Subject]
) -> dict[str, dict[str, TripletDataset]]:
    """The test sets of each model, tokenised for it.

    Raises:
        UserError: there is none, or the models would not be asked the same rows.
    """
    if not config.data.test:
        raise UserError("data.test is empty: name test sets, e.g. data.test={seen: seen.jsonl}")
    tokenised: dict[str, dict[str, TripletDataset]] = {}  # once for each base
    found = {}
    for subject in subjects:
        base = subject.config.model.model_dump_json()
        if base not in tokenised:
            tokenised[base] = test_sets(subject.config)
        found[subject.name] = tokenised[base]
    reference = next(iter(found.values()))
    for model, sets in found.items():
        for name, dataset in sets.items():
            if not dataset.table.column("id").equals(reference[name].table.column("id")):
                raise UserError(
                    f"test set {name}: the tokenizer of {model} makes other rows too long than "
                    f"that of {next(iter(found))}, so they would not be compared on the same rows: "
                    "raise data.max_length (of evaluate: --set data.max_length=N)"
                )
    return found


def check_checkpoints(checkpoints: Mapping[str, Path | None]) -> None:
    """Refuses checkpoints that are missing or damaged, before anything is loaded for them."""
    for name, checkpoint in checkpoints.items():
        if checkpoint is None:
            continue
        if not checkpoint.is_dir():
            raise UserError(f"{name}: no checkpoint at {checkpoint}; has the run finished?")
        verify_checkpoint(checkpoint)


def expected_progress(config: Config, models: int) -> int:
    """The sum of the numbers that an evaluation writes to its progress file."""
    return 2 * models * sum(dataset.results() for dataset in test_sets(config).values())


def record_evaluation(directory: Path, step: int, evaluation: Mapping[str, Any]) -> None:
    """Puts one line per model and test set into metrics.jsonl, in place of earlier ones."""
    path = directory / METRICS_FILE
    lines = [record for record in read_records(path) if record.get("kind") != "evaluation"]
    for model, result in evaluation["models"].items():
        for name, metrics in result["sets"].items():
            flat = {
                key: value["value"]
                for key, value in metrics.items()
                if isinstance(value, dict) and "value" in value
            }
            about = {"model": model, "set": name, "matmul": evaluation.get("matmul", FLOAT32)}
            lines.append({"kind": "evaluation", "step": step, **about, **flat})
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def has_trained_head(config: Config, name: str, checkpoint: Path) -> bool:
    """Whether a checkpoint's head took part in its loss.

    Raises:
        UserError: the checkpoint belongs to another base model or another adapter: in this run's
            model its weights would mean something else.
    """
    trust = f"model.trust_remote_code={str(config.model.trust_remote_code).lower()}"
    theirs = load_config(checkpoint / CONFIG, [trust])  # another run's word is not taken for it
    for section, ours, other in (
        ("model", config.model.model_dump(), theirs.model.model_dump()),
        ("lora", config.lora.shape(), theirs.lora.shape()),
    ):
        if ours != other:
            raise UserError(
                f"{name} was trained with another `{section}` section ({other!r}) than this run "
                f"({ours!r}); evaluate it as a run of its own"
            )
    return is_contrastive(theirs.loss)


def test_sets(config: Config) -> dict[str, TripletDataset]:
    """The run's test sets by name, tokenised."""
    encoder = encoder_source(config)
    return {
        name: load_test_set(config, encoder, paths).head(config.evaluation.limit)
        for name, paths in config.data.test.items()
    }


def _alone(config: Config, job: dict[str, Any], process: WorkerProcess) -> dict[str, Any]:
    directory = run_directory(config)
    try:
        found: dict[str, Any] = process.run(
            "evaluate",
            job,
            max_failures=config.ray.max_failures,
            retry_errors=False,
            look=WorkerLog(directory).look,
        )
    except WorkerFailedError as error:
        raise RunFailedError(
            f"the evaluation failed: {error}; {account_kept(directory, error.account)}"
        ) from error
    return found


def _on_ray(config: Config, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with ray_session(config):
        import ray
        from ray.exceptions import RayError

        from ray_jobs.training.resources import Ask
        from ray_jobs.training.waiting import refuse_impossible

        refuse_impossible(config, replace(Ask.of(config), least=1))
        task = ray.remote(evaluation_worker).options(
            num_cpus=config.resources.cpus_per_worker,
            num_gpus=config.resources.gpus_per_worker,
            accelerator_type=config.resources.accelerator_type,
            max_retries=config.ray.max_failures,  # -1 means any number to both
            # Not inside the placement group of whoever asks (a sweep's trial holds next to none).
            scheduling_strategy="DEFAULT",
        )
        directory = run_directory(config)
        workers = WorkerLog(directory)
        tasks = [task.remote(job) for job in jobs]
        left = tasks
        try:
            while left:
                done, left = ray.wait(left, timeout=_LOOK_SECONDS)
                workers.look()
                ray.get(done)  # a failure is known before the others are done
            return list(ray.get(tasks))
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError | RunFailedError):
                raise type(cause)(*cause.args) from error
            raise RunFailedError(
                f"the evaluation failed: {root_cause(error)}; {failure_kept(directory, error)}"
            ) from error
        finally:
            workers.look()
