"""`causal evaluate` for anything: runs, bases, adapters of others, several bases at once.

1. A run's files change with --record alone; results have a directory of their own.
2. Every figure follows from rows.parquet, whose prompts are those of each model's own tokenizer.
3. A model answers the same alone, beside others and beside another base.
4. Bad input is one sentence.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from causal_core.config import run_directory
from causal_core.errors import UnwritableError, UserError
from causal_core.evaluation.trace import ROWS
from causal_core.tokens.run_data import load_encoder
from ray_jobs import evaluate_command
from ray_jobs.cli import main
from ray_jobs.evaluate_command import EVALUATION, run_any_evaluation
from ray_jobs.run import run_training
from ray_jobs.subjects import Asked, evaluation_config
from tests.causal_core.checkpoints.test_adapter import write_adapter
from tests.command_line import command
from tests.tiny import tiny_base
from tests.tiny_run import CHAT_TEMPLATE, tiny_config, tiny_tokenizer

pytestmark = pytest.mark.long

CONSOLE = Console(quiet=True)
QUICK = ("resources.workers=0", "evaluation.max_new_tokens=2", "evaluation.limit=2",
         "resources.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model_directory, tiny_data, tmp_path_factory):
    config = tiny_config(
        tiny_model_directory,
        tiny_data,
        tmp_path_factory.mktemp("any") / "run",
        train={"max_steps": 1, "global_batch": 4, "learning_rate": 0.05},
        evaluation={"max_new_tokens": 2, "limit": 2},
    )
    config.data.limit_validation = 2
    run_training(config, CONSOLE, test=False)
    return run_directory(config)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A base of another width, whose template writes other roles, so other tokens."""
    directory = tmp_path_factory.mktemp("other-model")
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("+ '\n' +", "+ ' says\n' +"))
    base = tiny_base(vocabulary=len(tokenizer), hidden=48)
    base.config.pad_token_id = base.generation_config.pad_token_id = tokenizer.pad_token_id
    base.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def foreign(tiny_model_directory, tmp_path_factory):
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    return write_adapter(tiny_model_directory, tmp_path_factory.mktemp("foreign") / "a", **config)


@pytest.fixture
def test_file(tiny_data):
    return {"novel": [str(tiny_data / "test_novel.jsonl")]}


def rows_of(place, model):
    rows = pq.read_table(place / ROWS).to_pylist()
    return [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == model]


def files_of(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_run_keeps_its_record(run):
    before = files_of(run)
    place, evaluation = run_any_evaluation(Asked(run=run), CONSOLE)
    assert place == run / "evaluations" / "0001"
    assert list(evaluation["models"]) == ["base", "trained"]
    assert {p: c for p, c in files_of(run).items() if place not in p.parents} == before
    assert json.loads((place / EVALUATION).read_text()) == evaluation
    assert "Verdict" in (place / "report.html").read_text()
    again, _ = run_any_evaluation(Asked(run=run), CONSOLE)
    assert again.name == "0002"
    with pytest.raises(UserError, match="give --force to replace"):
        run_any_evaluation(Asked(run=run), CONSOLE, place)
    run_any_evaluation(Asked(run=run), CONSOLE, place, force=True)
    assert not list(place.parent.glob("0001?*"))


def test_replaced_results_come_back_when_the_new_ones_fail(run, tmp_path, monkeypatch):
    place = tmp_path / "kept"
    place.mkdir()
    (place / EVALUATION).write_text("{}")
    (place / ROWS).write_text("rows")
    before = files_of(place)

    def fails(place, *_):
        (place / ROWS).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "_evaluated_into", fails)
    with pytest.raises(KeyboardInterrupt):
        run_any_evaluation(Asked(run=run), CONSOLE, place, force=True)
    assert files_of(place) == before and [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["report.html", "results.parquet", "export.json", "step-00000001"])
def test_results_go_into_no_directory_of_something_else(run, tmp_path, name):
    place = tmp_path / "other"
    place.mkdir()
    (place / name).write_text("somebody's")
    with pytest.raises(UserError, match=f"something else than one evaluation .{name}."):
        run_any_evaluation(Asked(run=run), CONSOLE, place, force=True)
    assert (place / name).read_text() == "somebody's"


@pytest.mark.parametrize(
    "setting", ["evaluation.max_new_tokens=1", "data.max_length=99", "data.overlong=drop"]
)
def test_a_setting_that_changes_what_is_judged_is_of_no_record(run, tmp_path, setting):
    asked = Asked(run=run, settings=["resources.threads=1", setting])
    with pytest.raises(UserError, match=f"leave out --set {setting.partition('=')[0]}, or"):
        run_any_evaluation(asked, CONSOLE, tmp_path / "there", record=True)


def test_results_never_go_into_the_directory_of_a_run(run, tmp_path):
    before = files_of(run)
    with pytest.raises(UserError, match=r"is the directory of a run \(it has config.yaml\)"):
        run_any_evaluation(Asked(run=run), CONSOLE, run, force=True)
    assert files_of(run) == before
    with pytest.raises(UserError, match=r"config.yaml with evaluation.limt=1 is not a valid"):
        run_any_evaluation(Asked(run=run, settings=["evaluation.limt=1"]), CONSOLE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="choose another place with --out"):
        run_any_evaluation(Asked(run=run), CONSOLE, tmp_path / "file" / "below")


def test_the_record_changes_when_asked_to(run, tmp_path):
    _, evaluation = run_any_evaluation(Asked(run=run), CONSOLE, tmp_path / "here", record=True)
    recorded = json.loads((run / "summary.json").read_text())["evaluation"]
    assert recorded == {k: v for k, v in evaluation.items() if k != "evaluated"}
    for asked in (Asked(run=run, settings=QUICK), Asked(model="x", tests={"a": ["b"]})):
        with pytest.raises(UserError, match="--record"):
            run_any_evaluation(asked, CONSOLE, tmp_path / "there", record=True)


def test_every_figure_follows_from_the_rows(run, tmp_path):
    place, evaluation = run_any_evaluation(Asked(run=run), CONSOLE, tmp_path / "out")
    table = pq.read_table(place / ROWS).to_pylist()
    for model, found in evaluation["models"].items():
        for name, metrics in found["sets"].items():
            rows = [row for row in table if (row["model"], row["set"]) == (model, name)]
            judged = [r["attack_succeeded"] for r in rows if r["attack_succeeded"] is not None]
            assert metrics["attack_success"]["value"] == sum(judged) / len(judged)
            first = [row for row in rows if row["injection"] in (0, None)]
            exact = [row["benign_exact"] for row in first]
            assert metrics["benign_exact"]["value"] == sum(exact) / len(exact)
            uplift = [row["uplift"] for row in rows if row["uplift"] is not None]
            assert metrics["uplift"]["value"] == pytest.approx(sum(uplift) / len(uplift))
    encoder = load_encoder(evaluation_config(Asked(run=run)))
    text = encoder.tokenizer.decode(table[0]["attacked_prompt_ids"])
    assert table[0]["injection"] == 0 and text.startswith("<|start|>system\n")


def test_a_model_answers_the_same_alone_and_beside_others(
    run, tiny_model_directory, other_model, foreign, test_file, tmp_path
):
    shared = {"tests": test_file, "settings": QUICK}
    model = str(tiny_model_directory)
    places = {}
    for name, asked in {
        "all": Asked(
            model=model,
            adapter=str(foreign),
            against={
                "other": f"model:{other_model}",
                "defended": str(run),
                "as_adapter": f"adapter:{run}",
            },
            **shared,
        ),
        "base": Asked(model=model, **shared),
        "other": Asked(model=str(other_model), **shared),
        "adapter": Asked(adapter=str(foreign), **shared),
        "run": Asked(run=run, **shared),
    }.items():
        places[name], _ = run_any_evaluation(asked, CONSOLE, tmp_path / name)
    together = places["all"]
    found = json.loads((together / EVALUATION).read_text())
    assert set(found["models"]) == {"base", "other", "defended", "as_adapter", "trained"}
    assert rows_of(together, "base") == rows_of(places["base"], "base")
    assert rows_of(together, "other") == rows_of(places["other"], "base")
    assert rows_of(together, "trained") == rows_of(places["adapter"], "trained")
    assert rows_of(together, "defended") == rows_of(places["run"], "trained")
    assert rows_of(together, "defended") == rows_of(together, "as_adapter")
    prompts = {m: rows_of(together, m)[0]["clean_prompt_ids"] for m in ("base", "other", "trained")}
    assert prompts["base"] == prompts["trained"] != prompts["other"]
    uplifts = {m: [r["uplift"] for r in rows_of(together, m)] for m in found["models"]}
    assert len({tuple(u) for u in uplifts.values()}) == 4  # all but the run, which is there twice
    page = (places["base"] / "report.html").read_text()
    assert "No trained model is among those evaluated" in page and "<h2>Training</h2>" not in page


def test_an_adapter_goes_into_the_base_that_it_names(
    foreign, other_model, tiny_model_directory, test_file, tmp_path
):
    asked = Asked(
        model=str(other_model),
        against={"theirs": f"adapter:{foreign}"},
        tests=test_file,
        settings=QUICK,
    )
    _, found = run_any_evaluation(asked, CONSOLE, tmp_path / "out")
    bases = {k: v["base"]["name_or_path"] for k, v in found["evaluated"]["models"].items()}
    assert bases == {"base": str(other_model), "theirs": str(tiny_model_directory)}
    wrong = Asked(model=str(other_model), adapter=str(foreign), tests=test_file, settings=QUICK)
    with pytest.raises(UserError, match=r"was trained on .* leave --model out.* --any-base"):
        run_any_evaluation(wrong, CONSOLE, tmp_path / "wrong")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["--model", "demo"], "no test set: name one"),
        (["."], "no summary.json"),
        (["--model", "./nowhere", "--test", "a=b.jsonl"], "no such directory"),
        (["--adapter", "./nowhere", "--test", "a=b.jsonl"], "no such directory"),
        (["--model", "MODEL", "--test", "a"], "expected NAME=FILE"),
        (["--model", "MODEL", "--test", "a=b.json:nothing"], "is no benchmark that can be read"),
        (["--model", "MODEL", "--test", "a=b.json:sep", "--test", "a=c.jsonl"], "of one format"),
        (["--model", "MODEL", "--test", "a=nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "MODEL", "--test", "a=FILE", "--set", "train.matmul=auto"], "has settings in"),
        (
            ["--model", "MODEL", "--test", "a=FILE", "--set", "model.trust_remote_code=true"],
            "say --trust-remote-code",
        ),
        (["--model", "MODEL", "--test", "a=FILE", "--against", "b=nowhere"], "no such run"),
        (["--model", "MODEL", "--against", "base=x"], "with a name other than base, trained"),
        (["--model", "MODEL", "--against", "b=x", "--against", "b=y"], "is given 2 times"),
        (["nowhere"], "nowhere: no such run directory (a hub id is given with --model)"),
        (["MODEL"], "is no run, but a model: --model "),
        (["--model", "MODEL", "--test", "a=FILE", "--out", "MODEL/config.json"], "is a file; name"),
        (["--model", "MODEL", "--test", "a=sep.jsonl:SPE"], "'spe' is no benchmark"),
        (["--model", "MODEL", "--test", "a=FILE", "--record"], "--record changes the record of"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments, message, tiny_model_directory, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model_directory)
    places = {
        "MODEL": model,
        "MODEL/config.json": f"{model}/config.json",
        "a=FILE": f"a={tiny_data / 'test_seen.jsonl'}",
    }
    outcome = command(main, "evaluate", *(places.get(word, word) for word in arguments))
    assert outcome.returncode == 1 and message in outcome.stderr
    assert not list(tmp_path.rglob("*.json"))
