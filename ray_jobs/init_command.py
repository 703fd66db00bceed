"""`causal init`: a config to start from, its memory planned, with comments that say why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from causal_core.config import Config
    from causal_core.memory.shapes import DataProfile

_SPLITS = ("train", "validation")
_ENDINGS = (".jsonl", ".parquet")
_MARGIN = 0.9  # of a device: what a plan may be off by
_LENGTHS = 64  # data.max_length is a multiple of this many tokens
# More tokens at a time than these bring no more speed.
_MOST_TOKENS = {"cuda": 8192, "cpu": 2048}


def init(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path(
        "causal.yaml"
    ),
    model: Annotated[
        str, typer.Option(metavar="PLACE", help="A directory, a hub id or demo.")
    ] = "demo",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE",
            help="A file of triplets, or a directory with train, validation and test_* files.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Plan for this card, e.g. RTX4090; default: the one here, or CPU."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a config to start from: every line explained, its memory planned for the device.

    The base stays unquantised where that fits; else the planner takes what saves memory at the
    least cost. Tokens of a micro-batch are the most that fit and still help.

    Example: causal init mine.yaml --model Qwen/Qwen3-0.6B --data data/ --gpu RTX4090
    """
    from causal_core.data.writer import new_file
    from ray_jobs.console.plain import printable
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    planned = planned_config(path.stem, model, data, gpu)
    with new_file(path, overwrite=force) as temporary:
        temporary.write_text(commented(planned), encoding="utf-8")
    print(printable(f"{path}: {planned.memory}"))
    print(printable(f"next: causal plan {path}, then causal train {path}"))


@dataclass(frozen=True)
class Planned:
    """A config, and what was found out for it."""

    config: Config
    memory: str  # what it needs, of what
    data: str  # where its rows come from
    because: dict[str, str]  # by key: why it has this value


def planned_config(name: str, model: str, data: Path | None, gpu: str | None) -> Planned:
    """Chooses the settings of a run of a model on some data and a device.

    Raises:
        UserError: a model, data or a card that there is not, or a model that no setting fits.
    """
    import torch

    from causal_core.amounts import card_bytes, gib
    from causal_core.config_file import parse_config
    from causal_core.device import device_memory_bytes
    from causal_core.errors import UserError
    from causal_core.memory.fit import largest_micro_batch, predict_run
    from causal_core.memory.levers import nearest_fit, with_overrides
    from causal_core.visible_text import shown

    on_gpu = gpu is not None or torch.cuda.is_available()
    device: Any = "cuda" if on_gpu else "cpu"
    if gpu is not None:
        budget = card_bytes(gpu)
    else:
        budget = device_memory_bytes(torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    files, told = _files(data)
    tree: dict[str, Any] = {
        "run": {"dir": f"runs/{name}"},
        "model": {"name_or_path": model, "dtype": "bfloat16" if on_gpu else "float32"},
        "data": files,
        "train": {"micro_batch_tokens": _MOST_TOKENS[device]},
        "resources": {"workers": 1, "gpus_per_worker": 1 if on_gpu else 0},
    }
    if on_gpu:
        tree["resources"]["gpu_memory"] = f"{budget / 2**30:.1f}GiB"
    config = parse_config(tree)
    because: dict[str, str] = {}
    profile = None
    if data is not None:
        config, profile = _with_length(config)
        because["data.max_length"] = "the longest triplet of these files fits"
    usable = int(budget * _MARGIN)
    most = _MOST_TOKENS[device]
    tokens = largest_micro_batch(config, usable, device=device, at_most=most, data=profile)
    if tokens is None:
        found = nearest_fit(config, usable, device=device, data=profile)
        if found is None:
            raise UserError(
                f"{shown(model)}: no combination of settings fits {gib(budget)}: take a smaller "
                "model or a larger device (--gpu)"
            )
        config = with_overrides(config, found[0])
        because.update({item.partition("=")[0]: "so that it fits" for item in found[0]})
        tokens = largest_micro_batch(config, usable, device=device, at_most=most, data=profile)
    if tokens is not None:
        config = with_overrides(config, (f"train.micro_batch_tokens={tokens}",))
    because["train.micro_batch_tokens"] = (
        "as many as help" if tokens is not None and tokens >= most else "the most that fit"
    )
    needed = predict_run(config, device=device, data=profile).required_bytes
    where = gpu or ("the GPU here" if on_gpu else "this machine's memory")
    return Planned(config, f"needs {gib(needed)} of the {gib(budget)} of {where}", told, because)


def _files(data: Path | None) -> tuple[dict[str, Any], str]:
    """The section `data` for a place, and in words where its rows come from."""
    from causal_core.errors import UserError
    from causal_core.visible_text import shown

    if data is None:
        tests = {name: f"data/test_{name}.jsonl" for name in ("seen", "novel")}
        splits: dict[str, Any] = {split: [f"data/{split}.jsonl"] for split in _SPLITS}
        return {**splits, "test": tests}, "as `causal data generate data/` writes them"
    if not data.is_dir():
        return {"train": [str(data)]}, "yours; a validation set and test sets would tell more"
    found = {p.stem: str(p) for ending in _ENDINGS for p in sorted(data.glob(f"*{ending}"))}
    if "train" not in found:
        raise UserError(
            f"{shown(str(data))} holds no train.jsonl or train.parquet: name the file itself, or "
            "write a directory with causal data generate"
        )
    tests = {k.removeprefix("test_"): v for k, v in found.items() if k.startswith("test_")}
    return {**{s: [found[s]] for s in _SPLITS if s in found}, "test": tests}, "yours"


def _with_length(config: Config) -> tuple[Config, DataProfile]:
    """The config with room for its longest row, and what its micro-batches can look like."""
    from causal_core.loss.objective import needs_of
    from causal_core.memory.shapes import DataProfile
    from causal_core.tokens.run_data import load_encoder, load_split

    encoder = load_encoder(config)
    train = [file.path for file in config.data.weighted_files()]
    files: list[list[str]] = [train, config.data.validation, *config.data.test.values()]
    open_end = config.model_copy(deep=True)
    open_end.data.max_length = 2**24
    sets = [load_split(open_end, encoder, paths) for paths in files if paths]
    longest = max(dataset.longest() for dataset in sets)
    config = config.model_copy(deep=True)
    config.data.max_length = -(-longest // _LENGTHS) * _LENGTHS
    return config, DataProfile.of(sets[0], needs_of(config.loss))


def commented(planned: Planned) -> str:
    """The file: what is chosen here, each with its reason, and what is worth changing first."""
    from causal_core.config_reference import SCHEMA_FILE

    config, because = planned.config, planned.because

    def line(key: str, comment: str) -> str:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        reason = because.get(key, comment)
        text = f"  {key.rpartition('.')[2]}: {json.dumps(value, ensure_ascii=False)}"
        return f"{text}   # {reason}" if reason else text

    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# A run with its memory planned: {planned.memory}.",
        "# Every setting there is: docs/config.md. A key on the command line wins:",
        "#   causal train FILE train.epochs=1",
        "run:",
        line("run.dir", "all that the run leaves behind; the same command again resumes it"),
        line("run.seed", "of data order, initial values and dropout"),
        "model:",
        line("model.name_or_path", "a directory, a hub id or demo"),
        line("model.quantization", "nf4 takes a quarter of the memory of bfloat16"),
        line("model.dtype", "of the frozen base; what is trained stays in float32"),
        "lora:",
        line("lora.rank", ""),
        line("lora.alpha", "the adapter is scaled by alpha / rank"),
        line("lora.dropout", ""),
        f"data:   # {planned.data}",
        line("data.train", "triplets: causal data check FILE says what is wrong with them"),
        line("data.validation", "chooses the best checkpoint"),
        line("data.test", "by name; looked at after training only"),
        line("data.max_length", "tokens of a prompt with its answer; longer rows are an error"),
        "loss:",
        line("loss.preset", "default, contrastive or task_only (a control): docs/losses.md"),
        "train:",
        line("train.global_batch", "triplets per optimizer step, on all workers"),
        line("train.micro_batch_tokens", ""),
        line("train.epochs", ""),
        line("train.learning_rate", ""),
        line("train.optimizer", "8-bit and paged ones take less memory"),
        line("train.gradient_checkpointing", "less memory, a third more time"),
        "resources:",
        line("resources.workers", "0 runs in this process, without Ray"),
        line("resources.gpus_per_worker", ""),
    ]
    if config.resources.gpu_memory is not None:
        lines.append(line("resources.gpu_memory", "what the memory was planned for"))
    return "\n".join(lines) + "\n"
