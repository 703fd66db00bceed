"""The tokenised data of a run, and its optimizer steps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from causal_core.config import Config
from causal_core.errors import UserError
from causal_core.files import cache_root
from causal_core.pretrained.described import ARCHITECTURE, from_files
from causal_core.pretrained.loading import ModelLimits, load_tokenizer, model_limits
from causal_core.tokens.batches import StepPlan
from causal_core.tokens.dataset import TripletDataset, load_dataset
from causal_core.tokens.deferred import DeferredEncoder, facts_of
from causal_core.tokens.fresh import FreshAttacks
from causal_core.tokens.mixture import mixed, weighted
from causal_core.tokens.prompts import EncoderSource, PromptEncoder, build_prompt_encoder
from causal_core.tokens.tokenise import Progress
from causal_core.tokens.triplet import TripletTokens
from causal_core.visible_text import quoted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The tokenised data of a run."""

    source: EncoderSource
    train: TripletDataset
    validation: TripletDataset | None
    fresh: FreshAttacks | None = None  # where attacks are composed anew in every epoch

    @property
    def encoder(self) -> PromptEncoder:
        """Of the base model, made when it is first asked for."""
        return self.source.made()

    def tokens(self, row: int, epoch: int) -> TripletTokens:
        """A training row as it is in an epoch (from 0)."""
        return self.train.tokens(row) if self.fresh is None else self.fresh.tokens(row, epoch)

    def fingerprint(self) -> str:
        """sha256 over both sets: a resume on other training or validation data is refused."""
        train = self.train.fingerprint if self.fresh is None else self.fresh.fingerprint()
        validation = self.validation.fingerprint if self.validation is not None else "none"
        return hashlib.sha256(f"{train}/{validation}".encode()).hexdigest()


def load_encoder(config: Config) -> PromptEncoder:
    """The encoder of the base model's tokenizer and chat template."""
    tokenizer = load_tokenizer(config.model, config.data.cache_dir)
    return build_prompt_encoder(tokenizer, config.model.chat_template_args)


def encoder_source(config: Config) -> EncoderSource:
    """`load_encoder`, put off until a text is to be encoded where the model's files tell enough."""
    made: list[PromptEncoder] = []

    def make() -> PromptEncoder:
        if not made:
            made.append(load_encoder(config))
        return made[0]

    model = config.model
    return from_files(
        model,
        config.data.cache_dir,
        ["encoder", dict(model.chat_template_args)],
        lambda: facts_of(make()),
        lambda facts: DeferredEncoder(make, facts),
    )


def load_test_set(config: Config, encoder: EncoderSource, paths: list[str]) -> TripletDataset:
    """A set that is evaluated alone, on which rows may lack reference answers."""
    return load_split(config, encoder, paths, unanswered=True)


def load_split(
    config: Config,
    encoder: EncoderSource,
    paths: list[str],
    progress: Progress | None = None,
    unanswered: bool = False,
) -> TripletDataset:
    """One split of the run's data, tokenised and mapped."""
    dataset = load_dataset(
        paths,
        encoder,
        max_length=config.data.max_length,
        overlong=config.data.overlong,
        cache=cache_root(config.data.cache_dir),
        unanswered=unanswered,
        on_dropped=log.warning,
        progress=progress,
        columns=config.data.columns,
    )
    check_limits(dataset, encoder, _limits(config))
    return dataset


def _limits(config: Config) -> ModelLimits:
    """`model_limits`, remembered."""
    model, cache_dir = config.model, config.data.cache_dir
    return from_files(
        model,
        cache_dir,
        ["limits"],
        lambda: asdict(model_limits(model, cache_dir)),
        lambda found: ModelLimits(**found),
        ARCHITECTURE,
    )


def check_limits(dataset: TripletDataset, encoder: EncoderSource, limits: ModelLimits) -> None:
    """Refuses rows that the model cannot take: known before it is loaded.

    Raises:
        UserError: a row longer than the model's positions or than those that do not depend on its
            length, or with a token that has no embedding.
    """
    longest = dataset.longest()
    if limits.positions is not None and longest > limits.positions:
        raise UserError(
            f"the longest triplet has {longest} tokens, more than the {limits.positions} positions "
            "of the model (max_position_embeddings): set data.max_length="
            f"{limits.positions}, with data.overlong=drop to leave longer ones out"
        )
    if limits.same_rotation is not None and longest > limits.same_rotation:
        raise UserError(
            f"the longest triplet has {longest} tokens; in sequences of more than "
            f"{limits.same_rotation} this model (rope_type longrope) computes all positions "
            "differently, the first ones, too, so that they cannot share a prefix with shorter "
            f"sequences: set data.max_length={limits.same_rotation}, with data.overlong=drop to "
            "leave longer ones out"
        )
    rows = limits.vocabulary
    if rows is None or encoder.largest_token() < rows:
        return
    if (found := dataset.first_token_from(rows)) is not None:
        identity, token = found
        text = encoder.made().tokenizer.convert_ids_to_tokens(token)
        raise UserError(
            f"triplet {quoted(identity)} has the token {token} ({quoted(text)}), but the model's "
            f"embedding has {rows} rows: the tokenizer is another model's, or tokens were added to "
            "it and not to the model. Give the tokenizer that belongs to the model"
        )


def load_run_data(config: Config, progress: Progress | None = None) -> RunData:
    """Training and validation data (`UserError` where they cannot be used)."""
    if not config.data.train:
        raise UserError("data.train is empty: name at least one triplet file")
    encoder = encoder_source(config)
    train = _training_data(config, encoder, progress)
    validation = None
    if config.data.validation:
        validation = load_split(config, encoder, config.data.validation, progress)
        validation = validation.head(config.data.limit_validation)
    train = train.head(config.data.limit_train).with_injections(config.data.attacks_per_row)
    _refuse_without_counterfactual(config, {"train": train, "validation": validation})
    fresh = None
    if config.data.fresh_attacks:
        fresh = FreshAttacks(train, encoder.made(), config.run.seed)
    return RunData(encoder, train, validation, fresh)


def _training_data(
    config: Config, encoder: EncoderSource, progress: Progress | None
) -> TripletDataset:
    files, cache = config.data.weighted_files(), cache_root(config.data.cache_dir)
    if all(file.weight == 1 for file in files):
        return load_split(config, encoder, [file.path for file in files], progress)
    parts = [
        weighted(load_split(config, encoder, [file.path], progress), file.weight, cache)
        for file in files
    ]
    return mixed(parts)


def _refuse_without_counterfactual(
    config: Config, splits: Mapping[str, TripletDataset | None]
) -> None:
    """Only a term on representations needs U', and then of every row (`UserError`)."""
    weight = config.loss.asks_for_counterfactual()
    if weight is None:
        return
    for name, dataset in splits.items():
        if dataset is not None and (lacking := dataset.without_counterfactual()):
            raise UserError(
                f"loss.{weight}={getattr(config.loss, weight)} compares the representations of two "
                f"benign inputs, and {lacking:,} of {len(dataset):,} rows of data.{name} have no "
                "second one: give them a benign_cf_input, or set loss.lambda_causal=0 "
                "loss.lambda_spurious=0"
            )


def step_plan(config: Config, rows: int) -> StepPlan:
    """The optimizer steps of a run over `rows` training triplets."""
    train = config.train
    return StepPlan(rows, train.global_batch, train.epochs, train.max_steps)
