"""The one typed configuration tree (how it is read from files: `config_file.py`).

Its sections are in `config_sections.py`, `config_data.py` and `config_loss.py`.

Every default is the value that a run really uses, and the resolved tree is stored with the run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    model_validator,
)

from causal_core import config_names
from causal_core.config_data import DataSection
from causal_core.config_lora import LoraSection
from causal_core.config_loss import LossSection
from causal_core.config_sections import (
    CheckpointSection,
    DeepSpeedSection,
    EvaluationSection,
    LoggingSection,
    Matmul,
    ModelSection,
    RaySection,
    ResourcesSection,
    RunSection,
    Section,
    TrainSection,
    ValidationSection,
)
from causal_core.files import absolute_location

# Fields whose change does not change what a run computes: a resume accepts another value.
FREE_ON_RESUME = (
    "run.",
    "logging.",
    "ray.",
    "resources.",
    "evaluation.",
    "data.",  # compared by content: checkpoints hold fingerprints of the tokenised rows
    "lora.init_from",  # likewise, as part of what they say of the base
    "engine",
    "deepspeed.",
    "train.micro_batch_tokens",
    "train.gradient_checkpointing",
    "train.compile",
    "train.deterministic",  # how sums are rounded, not what is summed
    "checkpoint.keep_last",
    "checkpoint.storage",
)


class Config(Section):
    """A whole run."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection = Field(default_factory=ModelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection = Field(default_factory=DataSection)
    loss: LossSection = Field(default_factory=LossSection)
    train: TrainSection = Field(default_factory=TrainSection)
    engine: Literal["auto", "plain", "ddp", "deepspeed"] = Field(
        "auto", description="auto: plain on one worker, ddp on several. See docs/engines.md."
    )
    deepspeed: DeepSpeedSection = Field(default_factory=DeepSpeedSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    ray: RaySection = Field(default_factory=RaySection)
    logging: LoggingSection = Field(default_factory=LoggingSection)

    @model_validator(mode="after")
    def _engine_fits_workers(self) -> Config:
        if self.engine == "plain" and self.resources.max_workers > 1:
            raise ValueError(
                f"engine=plain runs one worker, resources.workers={self.resources.workers}: "
                "set engine=ddp (or auto)"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_can_do_it(self) -> Config:
        section = self.deepspeed
        if self.engine != "deepspeed":
            if section.offload_optimizer:
                raise ValueError(
                    f"deepspeed.offload_optimizer=true needs engine=deepspeed, found engine="
                    f"{self.engine}; train.optimizer=paged_adamw_8bit also leaves the GPU under "
                    "pressure, with any other engine"
                )
            return self
        if self.train.optimizer != "adamw":
            raise ValueError(
                f"engine=deepspeed with train.optimizer={self.train.optimizer}: ZeRO flattens all "
                "parameters, so 8-bit blocks would cross parameters and workers, and no other "
                "engine or number of workers could continue from their state. Set "
                "train.optimizer=adamw (ZeRO divides its state by the workers, "
                "deepspeed.offload_optimizer moves it to host memory), or engine=ddp"
            )
        if 0 < self.resources.gpus_per_worker < 1 and self.resources.max_workers > 1:
            raise ValueError(
                f"engine=deepspeed with resources.gpus_per_worker="
                f"{self.resources.gpus_per_worker}: ZeRO divides memory between GPUs, and workers "
                "that share one have nothing to divide (nor does NCCL connect them). Set "
                "resources.gpus_per_worker=1, or engine=ddp"
            )
        if section.zero_stage == 3 and self.train.compile == "on":
            raise ValueError(
                "deepspeed.zero_stage=3 with train.compile=on: ZeRO-3 gathers a layer's weights in "
                "hooks that compiled layers do not stop for. Set train.compile=off, or "
                "deepspeed.zero_stage=2"
            )
        if section.zero_stage == 3 and self.model.quantization == "nf4":
            raise ValueError(
                "deepspeed.zero_stage=3 with model.quantization=nf4: ZeRO-3 takes the base from "
                "host memory shard by shard, but bitsandbytes keeps the constants of its 4-bit "
                "weights outside the parameters, so they would stay behind. Set "
                "deepspeed.zero_stage=2 (the 4-bit base stays whole on each worker), or "
                "model.quantization=none"
            )
        return self

    @model_validator(mode="after")
    def _products_can_be_in_bfloat16(self) -> Config:
        for setting, asked, reason in (
            ("train.matmul", self.train.matmul, self._no_choice_of_products()),
            ("evaluation.matmul", self.evaluation.matmul, self._own_products()),
        ):
            if asked == "bfloat16" and reason:
                raise ValueError(
                    f"{setting}=bfloat16 with {reason}. Set {setting}=float32 (or auto)"
                )
        return self

    def frozen_products(self) -> Matmul:
        """`train.matmul`, or float32 where it has nothing to choose."""
        return "float32" if self._no_choice_of_products() else self.train.matmul

    def evaluated_products(self) -> Matmul:
        """`evaluation.matmul`, or float32 where it has nothing to choose."""
        return "float32" if self._own_products() else self.evaluation.matmul

    def _no_choice_of_products(self) -> str:
        """Why `train.matmul` has nothing to choose in this run; empty if it has."""
        if self.engine == "deepspeed" and self.deepspeed.zero_stage == 3:
            return (
                "deepspeed.zero_stage=3: ZeRO-3 gathers weights around each module's own forward, "
                "which stays float32"
            )
        return self._own_products()

    def _own_products(self) -> str:
        """Why the model's products are in a type of their own; empty if they are not."""
        if self.resources.gpus_per_worker > 0:
            return (
                f"resources.gpus_per_worker={self.resources.gpus_per_worker:g}: the choice is one "
                "of CPUs, and on a GPU model.dtype=bfloat16 is the fast type"
            )
        if self.model.quantization != "none":
            return (
                f"model.quantization={self.model.quantization}: bitsandbytes multiplies 4-bit "
                "weights in its own way"
            )
        if self.model.dtype != "float32":
            return f"model.dtype={self.model.dtype}: all products are in that type already"
        return ""

    def to_yaml(self) -> str:
        """The resolved tree as YAML, in the order of the sections."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """All leaves by dotted path (lists and test sets are leaves)."""
        leaves: dict[str, Any] = {}

        def walk(node: Any, path: str) -> None:
            if isinstance(node, dict) and path != "data.test":
                for key, value in node.items():
                    walk(value, f"{path}.{key}" if path else key)
            else:
                leaves[path] = node

        walk(self.model_dump(mode="json"), "")
        return leaves

    def result_fields(self) -> dict[str, Any]:
        """The leaves that determine what the run computes (all but `FREE_ON_RESUME`)."""
        return {
            key: value
            for key, value in self.flat().items()
            if not any(
                key == free or (free.endswith(".") and key.startswith(free))
                for free in FREE_ON_RESUME
            )
            or key == "run.seed"
        }

    def with_absolute_paths(self) -> Config:
        """The same run from any working directory: workers do not start in the driver's."""
        tree = self.model_dump(mode="json")
        data, run, model = tree["data"], tree["run"], tree["model"]
        run["dir"] = str(Path(run["dir"]).expanduser().resolve())
        data["train"] = [
            {**f, "path": absolute_location(f["path"])}
            if isinstance(f, dict)
            else absolute_location(f)
            for f in data["train"]
        ]
        data["validation"] = [absolute_location(path) for path in data["validation"]]
        data["test"] = {k: [absolute_location(p) for p in v] for k, v in data["test"].items()}
        if data["cache_dir"] is not None:
            data["cache_dir"] = absolute_location(data["cache_dir"])
        if Path(model["name_or_path"]).expanduser().is_dir():
            model["name_or_path"] = absolute_location(model["name_or_path"])
        start = tree["lora"]["init_from"]
        if start is not None and Path(start).expanduser().is_dir():
            tree["lora"]["init_from"] = absolute_location(start)
        return Config.model_validate(tree)

    def fingerprint(self) -> str:
        """sha256 over `result_fields`: two runs with the same one compute the same."""
        fields = config_names.first(_without_later(self.result_fields()))
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


# Fields that came after the first checkpoints, with the value at which a run computes what it did
# before there were any: such a run keeps its fingerprint, and can be resumed.
_LATER: dict[str, Any] = {
    "loss.lambda_preference": 0.0,
    "loss.lambda_anchor": 0.0,
    "loss.beta": 0.5,
    "loss.worst_case": None,
    "validation.answered": 32,
    "validation.at_checkpoints": True,
    "train.matmul": "float32",
}


def _without_later(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in fields.items() if key not in _LATER or value != _LATER[key]
    }


def run_directory(config: Config) -> Path:
    """The run directory as an absolute path (workers change their working directory)."""
    return Path(config.run.dir).expanduser().resolve()
