"""Trackers get the scalars; one that is not installed is refused before a run starts."""

from __future__ import annotations

import sys
import types

import pytest

from causal_core.config import LoggingSection
from causal_core.errors import ConfigError
from causal_core.run.run_log import RunLog
from causal_core.run.trackers import check_trackers


class Recorder(types.ModuleType):
    """Stands for the mlflow and wandb modules: the calls that this project makes of them."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace(name=name)
        self.calls = []
        self.info = types.SimpleNamespace(run_id="run-7")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


def test_tensorboard_events_hold_the_scalars_and_a_resume_purges(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, count in ((0, 4), (2, 3)):  # the second session resumes after step 2
        log = RunLog(tmp_path, start, LoggingSection())
        for step in range(start + 1, start + 1 + count):
            log.metrics("train", step, {"loss": float(10 * start + step), "note": "text"})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {e.step: e.value for e in events.Scalars("train/loss")}
    assert found == {1: 1.0, 2: 2.0, 3: 23.0, 4: 24.0, 5: 25.0}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_extras_get_the_same_scalars_and_a_resume_continues_the_run(tmp_path, monkeypatch, name):
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    for start in (0, 1):
        log = RunLog(tmp_path, start, LoggingSection(trackers=[name]))
        log.metrics("train", start + 1, {"loss": 0.5})
        log.close()
    logged = [c for c in recorder.calls if c[0] in ("log_metrics", "log")]
    assert [(c[1][0], c[2]["step"]) for c in logged] == [
        ({"train/loss": 0.5}, 1),
        ({"train/loss": 0.5}, 2),
    ]
    opened = [c[2] for c in recorder.calls if c[0] in ("start_run", "init")]
    if name == "mlflow":
        assert [o["run_id"] for o in opened] == [None, "run-7"]
    else:
        assert opened[0]["id"] == opened[1]["id"] and opened[0]["resume"] == "allow"


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_get_it():
    with pytest.raises(ConfigError, match=r"pip install 'causal-ray\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])
