"""Evaluations with products in bfloat16 (`evaluation.matmul`), on a machine where those are faster.

1. All models are computed in one type, whatever is adapted in them, and each result says in which.
2. What another evaluation found stands beside it only where it is of the same type.
3. No record in float32 is replaced by one in bfloat16 unasked.
4. It is no part of what a run computes, and refused where there is nothing to choose.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from causal_core.config import run_directory
from causal_core.config_file import parse_config
from causal_core.errors import ConfigError, UserError
from causal_core.evaluation.trace import ROWS
from causal_core.files import BEST
from causal_core.model import matmul
from ray_jobs import evaluate
from ray_jobs.console.result import show_evaluation
from ray_jobs.evaluate import Found, evaluated_rows, subjects_of
from ray_jobs.evaluate_command import run_any_evaluation
from ray_jobs.run import run_evaluation, run_training
from ray_jobs.subjects import Asked
from tests.causal_core.checkpoints.test_adapter import write_adapter
from tests.tiny_run import metric_lines, tiny_config

CONSOLE = Console(quiet=True)
QUICK = ("resources.workers=0", "evaluation.max_new_tokens=4", "evaluation.limit=2",
         "resources.threads=1")  # fmt: skip


@pytest.fixture
def speed(monkeypatch):
    """Sets what this processor's bfloat16 is measured at."""

    def measured(value):
        monkeypatch.setattr("causal_core.model.device_costs.bfloat16_speed", lambda library: value)

    measured(2.0)
    with matmul.using(matmul.in_use()):
        yield measured


@pytest.fixture(scope="module")
def run(tiny_model_directory, tiny_data, tmp_path_factory):
    """A run whose record is in float32."""
    config = tiny_config(
        tiny_model_directory,
        tiny_data,
        tmp_path_factory.mktemp("evaluated") / "run",
        train={"max_steps": 1, "global_batch": 4, "learning_rate": 0.05},
        evaluation={"max_new_tokens": 4, "limit": 2},
    )
    config.data.limit_validation = 2
    run_training(config, CONSOLE)
    return run_directory(config)


@pytest.fixture
def cache(run, tiny_data, tmp_path):
    """One where bfloat16 was not measured, and the library of float32 products is the run's: which
    is the faster one may be decided by noise, and decides last digits."""
    measured = tmp_path / "cache" / "measurements"
    measured.mkdir(parents=True)
    for entry in (tiny_data / "cache" / "measurements").iterdir():
        if not entry.stem.endswith("-bfloat16"):
            shutil.copy(entry, measured)
    return tmp_path / "cache"


@pytest.fixture
def settings(cache):
    """Of an evaluation."""
    return lambda *more: ["resources.threads=1", f"data.cache_dir={cache}", *more]


def rows_of(place, model):
    return [row for row in pq.read_table(place / ROWS).to_pylist() if row["model"] == model]


@pytest.mark.long
def test_a_result_says_in_which_type_it_is(run, settings, speed, tmp_path, capsys):
    asked = Asked(run=run, settings=settings("evaluation.matmul=auto"))
    place, found = run_any_evaluation(asked, CONSOLE, tmp_path / "bfloat16")
    assert found["matmul"] == "bfloat16" and not matmul.in_bfloat16()
    rows = rows_of(place, "base") + rows_of(place, "trained")
    assert {row["matmul"] for row in rows} == {"bfloat16"}
    show_evaluation(Console(width=200), found)
    for said in (capsys.readouterr().out, (place / "report.html").read_text()):
        assert "matrix products in bfloat16 (evaluation.matmul)" in said
    plain, exact = run_any_evaluation(Asked(run=run), CONSOLE, tmp_path / "float32")
    assert exact["matmul"] == "float32" and rows_of(plain, "base")[0]["matmul"] == "float32"
    assert "bfloat16" not in (plain / "report.html").read_text()
    assert exact["models"]["base"] != found["models"]["base"]
    assert exact["models"]["trained"] != found["models"]["trained"]


@pytest.mark.long
def test_slower_products_are_not_taken_and_refused_where_they_are_asked_for(
    run, settings, speed, tmp_path
):
    speed(0.5)
    asked = Asked(run=run, settings=settings("evaluation.matmul=auto"))
    _, found = run_any_evaluation(asked, CONSOLE, tmp_path / "auto")
    assert found["matmul"] == "float32"
    asked = Asked(run=run, settings=settings("evaluation.matmul=bfloat16"))
    with pytest.raises(UserError, match=r"^evaluation.matmul=bfloat16: on this processor.* 0\.50"):
        run_any_evaluation(asked, CONSOLE, tmp_path / "bfloat16")
    assert not (tmp_path / "bfloat16" / ROWS).exists()


@pytest.mark.long
def test_models_with_other_adapters_are_computed_in_the_same_type(
    run, tiny_model_directory, tiny_data, speed, cache, tmp_path
):
    """The base in the memory of an adapter of two modules says what it says alone."""
    part = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    foreign = write_adapter(tiny_model_directory, tmp_path / "foreign", **part)
    shared = {
        "model": str(tiny_model_directory),
        "tests": {"novel": [str(tiny_data / "test_novel.jsonl")]},
        "settings": [*QUICK, "evaluation.matmul=bfloat16", f"data.cache_dir={cache}"],
    }
    together, _ = run_any_evaluation(
        Asked(adapter=str(foreign), against={"defended": str(run)}, **shared),
        CONSOLE,
        tmp_path / "together",
    )
    alone, _ = run_any_evaluation(Asked(**shared), CONSOLE, tmp_path / "alone")
    assert rows_of(together, "base") == rows_of(alone, "base")
    assert {row["matmul"] for row in rows_of(together, "defended")} == {"bfloat16"}


@pytest.mark.long
def test_no_record_in_float32_is_replaced_unasked(run, settings, speed, tmp_path):
    record = (run / "summary.json").read_bytes()
    asked = Asked(run=run, settings=settings("evaluation.matmul=auto"))
    with pytest.raises(UserError, match=r"is from products in float32, .* or with --force$"):
        run_any_evaluation(asked, CONSOLE, tmp_path / "refused", record=True)
    assert not (tmp_path / "refused").exists() and (run / "summary.json").read_bytes() == record
    run_any_evaluation(asked, CONSOLE, tmp_path / "forced", record=True, force=True)
    recorded = json.loads((run / "summary.json").read_text())["evaluation"]
    assert recorded["matmul"] == "bfloat16"
    lines = [line for line in metric_lines(run) if line["kind"] == "evaluation"]
    assert {line["matmul"] for line in lines} == {"bfloat16"}
    run_any_evaluation(asked, CONSOLE, tmp_path / "again", record=True)
    exact = Asked(run=run, settings=settings("evaluation.matmul=float32"))
    run_any_evaluation(exact, CONSOLE, tmp_path / "exact", record=True)
    again = json.loads((run / "summary.json").read_text())["evaluation"]
    assert again["matmul"] == "float32"
    assert again["models"] == json.loads(record)["evaluation"]["models"]


@pytest.mark.long
def test_what_is_known_is_used_where_it_is_of_the_same_type(
    run, speed, cache, tmp_path, monkeypatch
):
    computed = []
    real = evaluate._rows

    def watched(config, subjects, datasets):
        computed.append([subject.name for subject in subjects])
        return real(config, subjects, datasets)

    config = parse_config(json.loads((run / "summary.json").read_text())["config"])
    config.data.cache_dir, config.run.dir = str(cache), str(tmp_path / "run")
    checkpoints = {"base": None, "trained": run / BEST}
    subjects = subjects_of(config, checkpoints)
    exact = evaluated_rows(config, checkpoints)
    some = {
        name: {k: v for k, v in sets.items() if k == "seen"} for name, sets in exact.rows.items()
    }
    monkeypatch.setattr(evaluate, "_rows", watched)
    for asked, known, left in (
        ("float32", exact, []),
        ("auto", exact, []),  # a type that `auto` may be, and nothing else beside it
        ("float32", Found({"base": exact.rows["base"]}, "float32"), [["trained"]]),
        ("float32", Found({**exact.rows, "base": some["base"]}, "float32"), [["base"]]),
        ("bfloat16", exact, [["base", "trained"]]),
        (
            "auto",
            Found({"base": exact.rows["base"]}, "float32"),
            [["trained"], ["base", "trained"]],
        ),
    ):
        config.evaluation.matmul = asked
        computed.clear()
        found = evaluate.evaluate(config, subjects, known=known)
        assert computed == left
        assert found["matmul"] == ("bfloat16" if ["base", "trained"] in left else "float32")
    bfloat16 = replace(exact, matmul="bfloat16")
    assert exact.joined(bfloat16) is exact and Found(some, "float32").joined(exact) == exact
    assert Found.from_plain(json.loads(json.dumps(exact.to_plain()))) == exact


@pytest.mark.long
def test_an_evaluation_of_record_by_the_config_of_a_run_keeps_to_float32(run, speed):
    text = (run / "config.yaml").read_text()
    try:
        (run / "config.yaml").write_text(text.replace("matmul: float32", "matmul: auto"))
        with pytest.raises(UserError, match=r"evaluation.matmul=auto may round"):
            run_evaluation(run, CONSOLE, {})
    finally:
        (run / "config.yaml").write_text(text)


def test_it_is_no_part_of_what_a_run_computes():
    tree = {"data": {"train": "none"}}
    rounded = parse_config({**tree, "evaluation": {"matmul": "auto"}})
    assert rounded.fingerprint() == parse_config(tree).fingerprint()
    assert rounded.evaluated_products() == "auto"


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"model": {"dtype": "bfloat16"}}, "model.dtype=bfloat16"),
        ({"model": {"quantization": "nf4"}}, "model.quantization=nf4"),
        ({"resources": {"gpus_per_worker": 1}}, "gpus_per_worker=1"),
    ],
)
def test_where_there_is_nothing_to_choose_it_is_float32_or_refused(section, reason):
    tree = {"data": {"train": "none"}, **section}
    assert (
        parse_config({**tree, "evaluation": {"matmul": "auto"}}).evaluated_products() == "float32"
    )
    with pytest.raises(ConfigError, match=rf"evaluation.matmul=bfloat16 with .*{reason}"):
        parse_config({**tree, "evaluation": {"matmul": "bfloat16"}})
