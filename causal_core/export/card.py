"""The model card of an export: what it is, what was measured, what was not, how to serve it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_core.evaluation.metrics import BEHAVIOUR, SHARE, TRAINED, ordered_sets
from causal_core.evaluation.statistics import Estimate, read_estimate
from causal_core.export.detector import detector_lines
from causal_core.report.attacks import CAVEAT, too_weak
from causal_core.report.wording import interval, rounding
from causal_core.visible_text import visible

_LONGEST = 200
_TASK, _DATASET = "text-generation", "causal-ray"


def write_card(
    path: Path,
    facts: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    attacks: Sequence[Mapping[str, Any]],
) -> None:
    """Writes README.md with its metadata, model-index among it.

    Args:
        facts: What `export.json` holds.
        evaluation: Of summary.json, checked; None where the run was not evaluated.
        attacks: What `causal attack` found, checked; empty where the run was not attacked.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=_DATASET,
            dataset_name=_cut(name),
            dataset_split=_cut(name),  # the hub tells sets apart by it, not by their name
            metric_type=metric.key,
            metric_value=estimate.value,
            metric_name=f"{metric.title} (95 % interval {interval(estimate, metric.unit)})",
        )
        for name, metric, estimate in _trained_metrics(evaluation)
    ]
    data = ModelCardData(
        model_name=_cut(facts["name"]),
        base_model=_cut(facts["base"]["name"]) if facts["base"]["on_hub"] else None,
        library_name="transformers" if facts["kind"] == "merged" else "peft",
        pipeline_tag=_TASK,
        tags=["prompt-injection", "causal-ray"],
        eval_results=results or None,
        license="apache-2.0" if facts["base"]["name"] == "demo" else None,
    )
    body = "\n".join(_lines(facts, evaluation, attacks))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    path.write_text(str(card), encoding="utf-8")


def code(text: object) -> str:
    """Untrusted text as a Markdown code span: no markup, no HTML, one line, no end of its cell."""
    shown = visible(str(text)[:_LONGEST]).replace("`", "'").replace("|", "¦")
    return f"`{' '.join(shown.split()) or '-'}`"


def _cut(text: object) -> str:
    """Untrusted text for the metadata, which is written as YAML."""
    return " ".join(visible(str(text)[:_LONGEST]).split())


def _trained_metrics(
    evaluation: Mapping[str, Any] | None,
) -> Iterator[tuple[str, Any, Estimate]]:
    sets = ((evaluation or {}).get("models") or {}).get(TRAINED, {}).get("sets") or {}
    for name in ordered_sets(sets):
        for metric in BEHAVIOUR:
            estimate = read_estimate((sets[name] or {}).get(metric.key))
            if estimate is not None:
                yield name, metric, estimate


def _lines(
    facts: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    attacks: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    adapter = facts["kind"] == "adapter"
    yield f"# {code(facts['name'])}\n"
    yield (
        f"{'A LoRA adapter for' if adapter else 'A merged fine-tune of'} "
        f"{code(facts['base']['name'])}, trained by causal-ray so that instructions hidden in the "
        "input are not followed: what is asked is in the system instruction, the input is data.\n"
    )
    yield from _origin(facts)
    yield from _measured(evaluation)
    yield from _attacked(attacks)
    yield from _exported(facts)
    yield from _use(facts, adapter)


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    base, data = facts["base"], facts["data"]
    trained = "4-bit NF4" if base["quantization"] == "nf4" else base["dtype"]
    yield "## Base and data\n"
    yield f"- Base: {code(base['name'])}, revision {code(base['revision'] or 'not pinned')},"
    yield f"  trained on in {trained}; fingerprint {code(base['fingerprint'])}."
    yield f"- Training data: fingerprint {code(data['fingerprint'])}."
    yield f"- Licences of its rows: {', '.join(map(code, data['licenses'])) or 'not stated'}."
    yield "- The base model's licence holds for what is made of it.\n"


def _measured(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Measured\n"
    models = (evaluation or {}).get("models") or {}
    if TRAINED not in models:
        yield "The run was not evaluated: nothing is known of what the training bought.\n"
        return
    for name in ordered_sets(models[TRAINED].get("sets") or {}):
        yield f"Test set {code(name)}, with 95 % intervals:\n"
        yield "| metric | " + " | ".join(map(code, models)) + " |"
        yield "|---" * (len(models) + 1) + "|"
        for metric in BEHAVIOUR:
            cells = [
                read_estimate(((model.get("sets") or {}).get(name) or {}).get(metric.key))
                for model in models.values()
            ]
            if any(cells):
                shown = (
                    f"{metric.unit.text(c.value)} ({interval(c, metric.unit)})" if c else "-"
                    for c in cells
                )
                yield f"| {metric.title} ({metric.direction}) | " + " | ".join(shown) + " |"
        yield ""
    yield "The intervals cover the sampling of rows, not other seeds.\n"
    for sentence in rounding(evaluation or {}):
        yield f"{sentence}\n"


def _attacked(attacks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Attackers that adapt\n"
    if not attacks:
        yield "Not tried (`causal attack`).\n"
        return
    for attack in attacks:
        yield from _curves(attack)
    yield f"{CAVEAT}\n"


def _curves(attack: Mapping[str, Any]) -> Iterator[str]:
    curves = attack["curves"]
    yield f"{code(attack['title'])}: rows of {code(attack['data'])} broken, of {attack['rows']}.\n"
    yield f"| {code(attack['unit'])} | " + " | ".join(map(code, curves)) + " |"
    yield "|---" * (len(curves) + 1) + "|"
    for budget in sorted({point["budget"] for curve in curves.values() for point in curve}):
        cells = []
        for curve in curves.values():
            point = next((p for p in curve if p["budget"] == budget), None)
            found = point and Estimate(point["value"], point["low"], point["high"], point["n"])
            cells.append(f"{SHARE.text(found.value)} ({interval(found, SHARE)})" if found else "-")
        yield f"| {budget} | " + " | ".join(cells) + " |"
    if (warning := too_weak(attack)) is not None:
        yield f"\n{warning}."
    yield ""


def _exported(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## This export\n"
    for sentence in facts["sentences"]:
        yield f"- {sentence}"
    yield ""
    if (detector := facts.get("detector")) is not None:
        yield "## Detector\n"
        yield from detector_lines(detector)
        for name, better in detector["better"].items():
            yield f"- {code(name)}: {'tells more' if better else 'not shown to tell more'}"
        yield ""


def _use(facts: Mapping[str, Any], adapter: bool) -> Iterator[str]:
    yield "## Use and limits\n"
    yield (
        "For tasks that a system instruction states and whose input is data: extraction, "
        "classification, rewriting, answers from a document. It lowers the share of injections "
        "that work; it is no boundary: do not give what the model says rights that the author of "
        "the input should not have. Attacks of other kinds and languages, conversations of several "
        "turns, tools and images were not part of the training.\n"
    )
    yield (
        "The chat template here breaks role and control markers inside the texts of messages, as "
        "training did. Serve with it, not with the base model's. Role names, tool definitions and "
        "documents are not treated.\n"
    )
    yield "## How to serve\n"
    base = "BASE"
    if adapter:
        nf4 = facts["base"]["quantization"] == "nf4"
        quantised = (
            ', quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",'
            " bnb_4bit_use_double_quant=True)"
        )
        yield f"BASE is {code(facts['base']['name'])}, OUT this directory.\n"
        yield "```python"
        yield "from peft import PeftModel"
        imports = "AutoModelForCausalLM, AutoTokenizer" + (", BitsAndBytesConfig" if nf4 else "")
        yield f"from transformers import {imports}\n"
        yield 'tokenizer = AutoTokenizer.from_pretrained("OUT")'
        yield f'base = AutoModelForCausalLM.from_pretrained("{base}"{quantised if nf4 else ""})'
        yield 'model = PeftModel.from_pretrained(base, "OUT")'
        yield "```\n"
        yield "```sh"
        yield (
            f"vllm serve {base} --enable-lora --max-lora-rank {facts['rank']} "
            "--lora-modules defended=OUT --tokenizer OUT --chat-template OUT/chat_template.jinja"
        )
        yield "```"
        return
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    yield 'tokenizer = AutoTokenizer.from_pretrained("OUT")'
    yield 'model = AutoModelForCausalLM.from_pretrained("OUT")'
    yield "```\n"
    yield "```sh"
    yield "vllm serve OUT"
    yield "```"
