"""`causal plan`, the memory part: what a run needs on one device, whether it fits, what would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from causal_core.amounts import gib
from causal_core.config import Config
from causal_core.memory.fit import largest_micro_batch, largest_rank, predict_run
from causal_core.memory.levers import Lever, levers, nearest_fit
from causal_core.memory.plan import PHASES, Device, MemoryPlan, device_of, reserved_bytes
from causal_core.memory.shapes import DataProfile

BAR = 28  # characters


@dataclass(frozen=True)
class MemoryReport:
    """Everything `causal plan` says about memory."""

    plan: MemoryPlan
    reserved_bytes: int | None  # by a replay of the allocator's rules; GPUs only
    budget_bytes: int | None
    largest_micro_batch: int | None
    largest_rank: int | None
    levers: list[Lever]
    nearest: tuple[str, ...] | None  # overrides that make it fit
    nearest_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """None where there is no budget to fit."""
        if self.budget_bytes is None:
            return None
        return self.plan.required_bytes <= self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.plan.to_dict(),
            "reserved_bytes": self.reserved_bytes,
            "budget_bytes": self.budget_bytes,
            "fits": self.fits,
            "largest_micro_batch_tokens": self.largest_micro_batch,
            "largest_rank": self.largest_rank,
            "levers": [lever.to_dict() for lever in self.levers],
            "nearest_overrides": list(self.nearest) if self.nearest is not None else None,
            "nearest_required_bytes": self.nearest_bytes,
        }


def report_memory(
    config: Config, budget: int | None, data: DataProfile | None = None
) -> MemoryReport:
    """Plans memory; with a budget also what fits it.

    Args:
        budget: Bytes of the device; None: none is known.
        data: What real micro-batches can look like, where data was read.
    """
    device: Device = "cuda" if budget is not None else device_of(config)
    plan = predict_run(config, device=device, data=data)
    reserved = reserved_bytes(config, plan) if device == "cuda" else None
    tokens = rank = nearest = nearest_bytes = None
    if budget is not None:
        tokens = largest_micro_batch(config, budget, device=device, data=data)
        rank = largest_rank(config, budget, device=device, data=data)
        if plan.required_bytes > budget:
            found = nearest_fit(config, budget, device=device, data=data)
            if found is not None:
                nearest, nearest_bytes = found[0], found[1].required_bytes
    return MemoryReport(
        plan,
        reserved,
        budget,
        tokens,
        rank,
        levers(config, device=device, data=data),
        nearest,
        nearest_bytes,
    )


def show_memory(console: Console, config: Config, report: MemoryReport) -> None:
    """The memory part as tables for people."""
    plan = report.plan
    shape = plan.shape
    console.print(
        f"\n[bold]memory[/bold] of one worker, allocated by torch, "
        f"micro-batch {shape.tokens:,} tokens ({shape.rows} x {shape.nodes:,}, "
        f"{shape.positions:,} of them with labels), peak in [bold]{plan.phase}[/bold]"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    for name, size in sorted(plan.components.items(), key=lambda item: -item[1]):
        if size > 0:
            bar = "█" * max(1, round(BAR * size / plan.peak_bytes))
            table.add_row(name.replace("_", " "), gib(size), bar)
    table.add_row("peak, allocated", gib(plan.peak_bytes), "", style="bold")
    outside = (
        "CUDA context (assumed)" if plan.device == "cuda" else "Python and libraries (assumed)"
    )
    table.add_row(outside, gib(plan.outside_bytes), "")
    table.add_row("needed on the device", gib(plan.required_bytes), "", style="bold")
    if report.reserved_bytes is not None:
        table.add_row(
            "with what torch reserves", gib(report.reserved_bytes + plan.outside_bytes),
            "reserved by the caching allocator, rows of fixed length",
        )  # fmt: skip
    console.print(table)
    phases = ", ".join(f"{name} {gib(plan.phases[name].peak_bytes)}" for name in PHASES)
    console.print(f"peak by phase, allocated: {phases}", soft_wrap=True)
    _show_levers(console, report)
    if report.budget_bytes is not None:
        _show_verdict(console, config, report, report.budget_bytes)


def _show_levers(console: Console, report: MemoryReport) -> None:
    table = Table(title="levers (allocated)", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("change")
    table.add_column("saves", justify="right")
    table.add_column("needed", justify="right")
    table.add_column("override", overflow="fold")
    for lever in sorted(report.levers, key=lambda lever: -lever.saved_bytes):
        table.add_row(
            lever.name, gib(lever.saved_bytes), gib(lever.required_bytes), " ".join(lever.overrides)
        )
    console.print(table)


def _show_verdict(console: Console, config: Config, report: MemoryReport, budget: int) -> None:
    plan = report.plan
    if report.largest_micro_batch is not None:
        console.print(
            f"largest micro-batch at rank {config.lora.rank}: {report.largest_micro_batch:,} tokens"
        )
    if report.largest_rank is not None:
        console.print(f"largest rank at {plan.shape.tokens:,} tokens: {report.largest_rank:,}")
    needed = f"needs {gib(plan.required_bytes)} of {gib(budget)}"
    if report.fits:
        console.print(f"[bold green]fits[/bold green]: {needed}")
        reserved = (report.reserved_bytes or 0) + plan.outside_bytes
        if reserved > budget:
            console.print(
                f"[yellow]tight[/yellow]: torch would like to reserve {gib(reserved)}; it will "
                "give cached blocks back and retry, which costs time"
            )
        return
    console.print(f"[bold red]does not fit[/bold red]: {needed}")
    if report.nearest is None:
        console.print("no combination of settings of this model fits: take a smaller model")
    else:
        console.print(
            f"nearest that fits (needs {gib(report.nearest_bytes or 0)}): "
            + " ".join(report.nearest),
            soft_wrap=True,
        )
