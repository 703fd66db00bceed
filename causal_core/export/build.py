"""An export from a run: weights, tokenizer, defended template, a check by reloading it, a card."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causal_core import inference
from causal_core.checkpoints.contents import PROJECTION, read_manifest
from causal_core.checkpoints.store import checkpoint_location
from causal_core.config import Config
from causal_core.errors import RunFailedError, UserError
from causal_core.evaluation.generation import end_tokens
from causal_core.export.card import write_card
from causal_core.export.compare import (
    Observed,
    Question,
    compared,
    hostile_prompts,
    observe,
    template_prompts,
    training_prompts,
)
from causal_core.export.detector import export_detector
from causal_core.export.template import defended_template, deviations
from causal_core.export.weights import write_adapter, write_merged
from causal_core.files import SUMMARY, whole_directory, write_whole, writes_to
from causal_core.loss.objective import is_contrastive
from causal_core.pretrained.loading import load_base
from causal_core.report.attacks import read_attacks
from causal_core.report.recorded import read_summary
from causal_core.run.lock import only_maker
from causal_core.tokens.dataset import TripletDataset
from causal_core.tokens.prompts import PromptEncoder
from causal_core.tokens.run_data import load_split
from causal_core.visible_text import shown

EXPORT = "export.json"
HEAD = "head"  # a folder: whoever reads all weights of a model directory must not find it there
_FORMAT = 1
_ROOM = 8  # tokens beyond the longest answer

Say = Callable[[str], object]


@dataclass(frozen=True)
class ExportOptions:
    """What is asked of an export; None: as the run was trained."""

    merge: bool = False
    dtype: str | None = None
    data: str | None = None  # `FILE#SPLIT` to compare on; None: the run's last test set
    rows: int = 16
    force: bool = False
    trust_remote_code: bool = False


def export_run(
    run: Path, out: Path, options: ExportOptions, say: Say = lambda text: None
) -> dict[str, Any]:
    """Exports a run's best checkpoint, reloads it as its users will, and measures what differs.

    Returns:
        The content of export.json.

    Raises:
        UserError: no whole checkpoint, no rows to compare on, or something in the place of `out`.
        RunFailedError: the exported template gives other prompts than training had.
    """
    with only_maker(out, moved_by="OUT"):
        return _exported(run, out, options, say)


def _exported(run: Path, out: Path, options: ExportOptions, say: Say) -> dict[str, Any]:
    _refuse_existing(out, options.force)
    say("loading the run")
    checkpoint = inference.checkpoint_of(run)
    _refuse_below_checkpoints(out, (checkpoint, Path(checkpoint_location(run, None))))
    trained = inference.load(run, trust_remote_code=options.trust_remote_code)
    config, encoder, device = trained.config, trained.encoder, trained.device
    weights = trained.weights
    summary = read_summary(run) if (run / SUMMARY).is_file() else {}
    attacks = read_attacks(run)
    set_name, dataset = _rows(config, encoder, options.data)
    questions = _questions(dataset, encoder, options.rows)
    room = dataset.longest_of("benign_answer", "attack_answer") + _ROOM
    dtype = options.dtype or (config.model.dtype if options.merge else "float32")
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.chat_template = _templates(encoder)
    generation = _generation(trained)

    say(f"asking the run {len(questions)} questions of {set_name}")
    base = trained.model.peft_model.get_base_model()
    prompts = training_prompts(encoder, questions)
    before = observe(base, encoder, prompts, questions, generation, room)

    with writes_to(out, "OUT"), whole_directory(out, replace=options.force) as place:
        say("writing weights")
        if options.merge:
            del trained, base  # there may be no room for both
            gc.collect()
            write_merged(place, config, checkpoint, dtype, device)
        else:
            write_adapter(place, trained.model, dtype)
            del trained, base
            gc.collect()
        tokenizer.save_pretrained(str(place))
        generation.save_pretrained(str(place))
        if is_contrastive(config.loss):
            (place / HEAD).mkdir()
            write_whole(place / HEAD / PROJECTION, (checkpoint / PROJECTION).read_bytes())
        detector = export_detector(place, checkpoint.parent, weights)
        say("reloading what was written")
        after, hostile = _reloaded(place, config, encoder, questions, room, options.merge, device)
        labels = encoder.answers_ids([q.answer for q in questions])
        facts = {
            "format": _FORMAT,
            "name": out.name,
            "kind": "merged" if options.merge else "adapter",
            "dtype": dtype,
            "rank": config.lora.rank,
            **_origin(config, encoder, checkpoint),
            "template": {"deviations": deviations(encoder), "hostile_prompts": hostile},
            "reloaded": {"set": set_name, **compared(before, after, labels)},
            "detector": detector,
        }
        _refuse_forgeable(facts)
        facts["sentences"] = sentences(facts)
        write_card(place / "README.md", facts, summary.get("evaluation"), attacks)
        write_whole(place / EXPORT, json.dumps(facts, indent=1) + "\n")
    return facts


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What was found when the export was reloaded, for the terminal and the card."""
    found, template = facts["reloaded"], facts["template"]
    n = found["rows"]
    logits, answer = found["logits"], found["answer_log_probabilities"]
    told = [
        f"Reloaded with plain {'transformers' if facts['kind'] == 'merged' else 'PEFT'} "
        f"({facts['dtype']}) and asked {n} rows: {found['same_prompts']} of {n} prompts and "
        f"{found['same_answers']} of {n} greedy answers are those of the run.",
        f"Logits differ by {logits['largest']:.2g} at most and {logits['mean']:.2g} on the mean, "
        f"log-probabilities of the right answer's tokens by {answer['largest']:.2g} and "
        f"{answer['mean']:.2g} (nats).",
    ]
    success = found["attack_success"]
    if success["run"] is not None:
        ran, exported = (
            f"{round(s['value'] * s['n'])} of {s['n']}" for s in (success["run"], success["export"])
        )
        told.append(f"Attacks that succeed on these rows: {exported}, with the run {ran}.")
    if facts["base"]["quantization"] == "nf4":
        told.append(
            "The run was trained on 4-bit weights (NF4), and merging into others changes numbers: "
            "by how much stands above."
            if facts["kind"] == "merged"
            else "The run was trained on 4-bit weights (NF4): on others the adapter's numbers are "
            "other ones."
        )
    if facts.get("detector"):
        told.append("The detector that was fitted on the run is in guard/.")
    hostile = template["hostile_prompts"]
    told.append(
        f"The chat template was tried with {hostile['tried']} hostile prompts: none becomes a "
        f"control token, {hostile['same_ids']} have the ids of training."
    )
    told += [
        f"Hostile text may get other ids than in training: {reason}. It is broken all the same."
        for reason in template["deviations"]
    ]
    return told


def _refuse_existing(out: Path, force: bool) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UserError(f"{shown(str(out))} exists already; give --force to replace it")
    if out.is_symlink() or not (out / EXPORT).is_file():
        raise UserError(
            f"{shown(str(out))} is no earlier export (no {EXPORT} in it), and --force replaces "
            "nothing else: choose another place"
        )


def _refuse_below_checkpoints(out: Path, replaced: Iterable[Path]) -> None:
    """An export is not to go when the run goes on, or in the place of what it was made of."""
    for place in replaced:
        if place.resolve() in out.resolve().parents:
            raise UserError(
                f"{shown(str(out))} is in {shown(str(place))}, where a run that goes on replaces "
                "its checkpoints: choose a place outside"
            )


def _refuse_forgeable(facts: Mapping[str, Any]) -> None:
    """The template must do what it is for, on the tokenizer that it is for."""
    template, found = facts["template"], facts["reloaded"]
    hostile = template["hostile_prompts"]
    exact = not template["deviations"]
    if hostile["forged"] or (
        exact and (hostile["same_ids"] < hostile["tried"] or found["same_prompts"] < found["rows"])
    ):
        raise RunFailedError(
            f"the exported chat template gives other prompts than training had: of "
            f"{hostile['tried']} hostile ones {hostile['forged']} hold control tokens of the text "
            f"and {hostile['tried'] - hostile['same_ids']} have other ids, and so have "
            f"{found['rows'] - found['same_prompts']} of {found['rows']} rows; nothing was written"
        )


def _rows(config: Config, encoder: PromptEncoder, data: str | None) -> tuple[str, TripletDataset]:
    if data is not None:
        return data, load_split(config, encoder, [data])
    if not config.data.test:
        raise UserError("the run has no test set: name rows to compare on with --data FILE#SPLIT")
    name = list(config.data.test)[-1]
    try:
        return name, load_split(config, encoder, config.data.test[name])
    except UserError as error:
        raise UserError(f"{error}; name other rows to compare on with --data FILE#SPLIT") from error


def _questions(dataset: TripletDataset, encoder: PromptEncoder, count: int) -> list[Question]:
    """Rows evenly through a test set, each with its first injection."""
    rows = [dataset.triplet(i) for i in range(0, len(dataset), max(1, len(dataset) // count))]
    attacked = [row.attacked(0 if row.injections else None) for row in rows[:count]]
    return [Question.of(row, encoder) for row in attacked]


def _templates(encoder: PromptEncoder) -> Any:
    """The tokenizer's template, or all of them by name, defended."""
    own = encoder.tokenizer.chat_template
    if isinstance(own, Mapping):
        return {name: defended_template(encoder, source) for name, source in own.items()}
    return defended_template(encoder, own)


def _generation(trained: inference.TrainedModel) -> Any:
    """Greedy, up to the template's own end of an answer."""
    from transformers import GenerationConfig

    base = trained.model.peft_model.get_base_model()
    end = trained.encoder.end_of_answer
    padding = trained.encoder.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(end_tokens(base, end)),
        pad_token_id=end if padding is None else padding,
    )


def _reloaded(
    place: Path,
    config: Config,
    encoder: PromptEncoder,
    questions: list[Question],
    room: int,
    merged: bool,
    device: torch.device,
) -> tuple[Observed, dict[str, int]]:
    """What was written, loaded as its users load it, asked the same."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    trust = config.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=trust)
    if merged:
        model = AutoModelForCausalLM.from_pretrained(
            str(place), dtype="auto", trust_remote_code=trust
        ).to(device)
    else:
        model = PeftModel.from_pretrained(load_base(config.model, device), str(place))
    generation = GenerationConfig.from_pretrained(str(place))
    prompts = template_prompts(tokenizer, encoder.template.system_role, questions)
    observed = observe(model, encoder, prompts, questions, generation, room)
    return observed, hostile_prompts(encoder, tokenizer)


def _origin(config: Config, encoder: PromptEncoder, checkpoint: Path) -> dict[str, Any]:
    manifest = read_manifest(checkpoint)
    model = config.model
    local = Path(model.name_or_path).exists()
    return {
        "step": manifest.step,
        "base": {
            # An export goes to others, whom a path of this machine tells nothing.
            "name": Path(model.name_or_path).name if local else model.name_or_path,
            "on_hub": not local and model.name_or_path != "demo",
            "revision": model.revision,
            "quantization": model.quantization,
            "dtype": model.dtype,
            "fingerprint": manifest.base_fingerprint,
        },
        "data": {
            "fingerprint": manifest.data_fingerprint,
            "licenses": _licenses(config, encoder),
        },
    }


def _licenses(config: Config, encoder: PromptEncoder) -> list[str]:
    """Of the training rows, where their files still are on this machine."""
    paths = [file.path for file in config.data.weighted_files()]
    try:
        table = load_split(config, encoder, paths).table
    except UserError:
        return []
    return sorted({value for value in table.column("license").to_pylist() if value})
