"""Deliberate small bugs: what each changes, and the fast tests of which one must fail.

`python -m tests.mutation` (make mutants) puts each in and runs its tests. A bug whose original text
is no longer there exactly once is refused, by a test as well, so that this list follows the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One bug: `original`, which stands in the file once, becomes `replacement`."""

    file: str
    original: str
    replacement: str
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        one_line = (" ".join(text.split()) for text in (self.original, self.replacement))
        return f"{self.file}: " + " -> ".join(one_line)

    def problem(self, root: Path) -> str | None:
        """Why this bug cannot be put into the tree below `root`; None where it can."""
        count = (root / self.file).read_text(encoding="utf-8").count(self.original)
        if count != 1:
            return f"{self.title}: the original text is there {count} times, not once"
        if self.original == self.replacement:
            return f"{self.title}: changes nothing"
        missing = [t for t in self.tests if not (root / t.partition("::")[0]).is_file()]
        return f"{self.title}: no such test file: {', '.join(missing)}" if missing else None

    def applied(self, text: str) -> str:
        return text.replace(self.original, self.replacement)


def _mutants(
    file: str, tests: str | tuple[str, ...], *changes: tuple[str, str]
) -> tuple[Mutant, ...]:
    names = (tests,) if isinstance(tests, str) else tests
    return tuple(
        Mutant(file, original, replacement, tuple(f"tests/{name}" for name in names))
        for original, replacement in changes
    )


EXACT = "causal_core/step/test_exactness.py"
LOOP = "causal_core/run/test_loop.py"
CUT_RUN = f"{LOOP}::test_a_cut_run_ends_bit_identical"
SKIPPED = f"{LOOP}::test_non_finite_steps_are_skipped_and_then_stop_the_run"
ROWS = "causal_core/evaluation/test_rows.py"
ONE_PASS = "causal_core/evaluation/test_one_pass.py"
OWN_MARGIN = "causal_core/evaluation/test_own_margin.py"
BATCHES = "causal_core/tokens/test_batches.py"
BLOCKS = "causal_core/trees/test_blocks.py"
PEFT = "causal_core/checkpoints/test_peft_interchange.py"
DAMAGE = "causal_core/checkpoints/test_damage.py"
TREES = "causal_core/trees/test_prefix_tree.py"
ENGINE_STATE = "causal_core/engines/test_engines.py::test_what_is_not_whole_gets_no_manifest"

LOSSES = (
    *_mutants(
        "causal_core/loss/contrastive.py",
        ("causal_core/loss/test_contrastive.py", EXACT),
        ("return -cos_counterfactual_T.sum() / temperature",
         "return cos_counterfactual_T.sum() / temperature"),
        ("return -cos_counterfactual_T.sum() / temperature",
         "return -cos_counterfactual_T.mean() / temperature"),
        ("return cos_injection_J.sum() / temperature", "return cos_injection_J.sum()"),
        ("(benign_TH[owner_J] * injection_JH).sum(-1)",
         "(counterfactual_TH[owner_J] * injection_JH).sum(-1)"),
        ("z = F.normalize(at_least_float32(z_ZH), dim=-1)", "z = at_least_float32(z_ZH)"),
        ("(values_J * cosine.share_J()).sum()", "values_J.sum()"),
        ("-F.log_softmax(scores, dim=-1)[:, 0]", "-F.log_softmax(scores, dim=-1)[:, 1]"),
        ("F.relu(margin - cos_counterfactual + cos_injection)",
         "(margin - cos_counterfactual + cos_injection)"),
        ("F.relu(margin - cos_counterfactual + cos_injection)",
         "F.relu(margin + cos_counterfactual - cos_injection)"),
    ),
    *_mutants(
        "causal_core/loss/label_loss.py",
        "causal_core/loss/test_label_loss.py",
        ("value_m = -labels.log_p_cV[answer.position, answer.target]",
         "value_m = labels.log_p_cV[answer.position, answer.target]"),
        ("(q_mV * (log_q_mV - labels.log_p_cV[student.position])).sum(-1)",
         "(q_mV * (labels.log_p_cV[student.position] - log_q_mV)).sum(-1)"),
        ("Pull(student, q_mV)", "Pull(student, 0.5 * q_mV)"),
        ("gradient_nH.index_add_(0, chunk.slots, by_part_cH)",
         "gradient_nH[chunk.slots[1:]] += by_part_cH[1:]"),
        ("return gradient_nH * grads[0].to(gradient_nH.dtype), None, None, None",
         "return gradient_nH, None, None, None"),
        ("-by_m, accumulate=True)", "-by_m, accumulate=False)"),
        ("len(found),), term.factor)", "len(found),), 1.0)"),
        ("pull.towards.mul_(-by_m[:, None])", "pull.towards.mul_(by_m[:, None])"),
        ("by_m *= pull.strength_m", "pass"),
        ("by_m *= weight_s[found.injection]", "pass"),
        ("dim=-1, dtype=wide)", "dim=-1)"),
        ("torch.stack(shares).sum()", "sums_W.sum()"),
    ),
)  # fmt: skip

DENOMINATORS = (
    *_mutants(
        "causal_core/loss/objective.py",
        "causal_core/loss/test_objective.py",
        ("if term.always or weights[term.name] > 0]", "if weights[term.name] > 0]"),
    ),
    *_mutants(
        "causal_core/loss/objective.py",
        EXACT,
        ("count=lambda triplet: len(triplet.benign_answer),\n        groups=(TASK,),\n"
         "        losses=cross_entropy", "count=_each,\n        groups=(TASK,),\n"
         "        losses=cross_entropy"),
        ("sum(len(i.answer) for i in triplet.injections)", "len(triplet.benign_answer)"),
        ("sum(len(triplet.shared_answer(i)) for i in triplet.injections)",
         "len(triplet.benign_answer) * len(triplet.injections)"),
        ("sum(bool(i.attack_answer) for i in triplet.injections)", "len(triplet.injections)"),
        ("with without_adapter(model):\n            return", "if True:\n            return"),
        ("name: weight / max(1, counts[name]) for", "name: weight / max(2, counts[name]) for"),
        ("total * factors[name] for name, total in sums.items()",
         "total * factors[\"causal\"] for name, total in sums.items()"),
        ("groups=(SHARED_CLEAN, SHARED_ATTACKED)", "groups=(SHARED_ATTACKED, SHARED_CLEAN)"),
        ("value = value + contrast\n", "value = value + contrast.detach()\n"),
    ),
    *_mutants(
        "causal_core/step/out_of_memory.py",
        "causal_core/step/test_out_of_memory.py",
        ("            random.restore()\n", "            pass\n"),
        ("    _free_failed_graph()\n    return", "    return"),
        ("\"CUBLAS_STATUS_NOT_INITIALIZED\",", "\"CUBLAS_STATUS_EXECUTION_FAILED\","),
    ),
    *_mutants(
        "causal_core/step/train_step.py",
        SKIPPED,
        ("applied = math.isfinite(grad_norm) and math.isfinite(loss)", "applied = True"),
    ),
)  # fmt: skip

PREFIX_TREE = (
    *_mutants(
        "causal_core/trees/prefix_tree.py",
        EXACT,
        ("self._children.get((parent, token))", "self._children.get((depth, token))"),
        ("mask[node] = mask[parent]  #", "mask[node, parent] = True  #"),
        ("first = len(prompt) - 1  #", "first = len(prompt) - 2  #"),
        ("mask[r, 0, :size, :size] = row.tree.ancestor_mask()",
         "mask[r, 0, :size, :size] = np.tril(np.ones((size, size), dtype=bool))"),
        ("pool[r, b, path] = 1.0 / len(path)", "pool[r, b, path] = 1.0 / width"),
        ("pool[0, b, rank[path]] = 1.0 / len(path)", "pool[0, b, path] = 1.0 / len(path)"),
        ("parents[parents >= 0] = rank[parents[parents >= 0]]", "pass"),
        ("slot = label_slots.setdefault(int(rank[node]), len(label_slots))",
         "slot = label_slots.setdefault(int(node), len(label_slots))"),
        ("depths[: len(order)] = np.array(row.tree.depths)[order]",
         "depths[: len(order)] = np.arange(len(order))"),
        ("if not prompt:", "if prompt is None:"),
    ),
    *_mutants(
        "causal_core/trees/prefix_tree.py",
        TREES,
        ("self.depths.append(depth)", "self.depths.append(depth + 1)"),
        ("path = self.tree.add([*prompt, *answer[:-1]])",
         "path = self.tree.add([*prompt, *answer])"),
    ),
    *_mutants(
        "causal_core/trees/labels.py",
        "causal_core/loss/test_label_loss.py",
        ("if len(slots) + len(new) > at_once:", "if len(slots) + len(new) > 2 * at_once:"),
        ("slots.setdefault(position, len(slots))", "slots.setdefault(position, position)"),
        ("for part in parts.values():\n                part.clear()", "pass"),
    ),
    *_mutants(
        "causal_core/tokens/triplet.py",
        EXACT,
        ("return self.benign_answer if self.benign_answer == injection.answer else []",
         "return self.benign_answer"),
    ),
)  # fmt: skip

BATCHING = (
    *_mutants(
        "causal_core/trees/needs.py",
        EXACT,
        ("    ROBUST: INJECTION,", "    ROBUST: BENIGN,"),
        ("    SHARED_ATTACKED: INJECTION,", "    SHARED_ATTACKED: BENIGN,"),
    ),
    *_mutants(
        "causal_core/trees/needs.py",
        ROWS,
        ("    WITNESS_CLEAN: BENIGN,", "    WITNESS_CLEAN: INJECTION,"),
    ),
    *_mutants(
        "causal_core/trees/packing.py",
        EXACT,
        ("ROBUST: lambda triplet: [i.answer for", "ROBUST: lambda triplet: [i.witness for"),
        ("row.add_prompt(prompt, branch)", "row.add_prompt(benign, branch)"),
        ("group, owner, number)", "group, owner, 0)"),
        ("start += len(chosen)", "start += max(1, budget // width)"),
    ),
    *_mutants(
        "causal_core/trees/packing.py",
        TREES,
        ("add_triplet(row, triplets[index], needs, owner=index)\n    return row",
         "add_triplet(row, triplets[index], needs, owner=0)\n    return row"),
        ("if current and merged <= budget and pays:", "if current and pays:"),
        ("if fits and len(row.tree) <= budget:", "if fits:"),
    ),
    *_mutants(
        "causal_core/tokens/batches.py",
        BATCHES,
        ("np.random.default_rng([seed, epoch])", "np.random.default_rng(seed)"),
        ("math.ceil(self.rows / self.global_batch)", "self.rows // self.global_batch or 1"),
        ("(within + 1) * self.global_batch]", "(within + 1) * self.global_batch - 1]"),
        ("loads.index(min(loads))", "loads.index(max(loads))"),
        ("loads[worker] += costs[position]", "loads[worker] += 1"),
        ("return steps if self.max_steps is None else min(steps, self.max_steps)", "return steps"),
    ),
)  # fmt: skip

ATTENTION = (
    *_mutants(
        "causal_core/model/attention.py",
        EXACT,
        ("_add_ranges(grad_key, piece.keys, dk.sum(1))",
         "_add_ranges(grad_key, piece.keys, dk[:, 0])"),
        ("_add_ranges(grad_value, piece.keys, dv.sum(1))",
         "_add_ranges(grad_value, piece.keys, dk.sum(1))"),
        ("target[:, start:stop] += values", "target[:, start:stop] = values"),
        ("offset += stop - start", "pass"),
        ("scale=query.shape[-1] ** -0.5 if scale is None else float(scale)",
         "scale=query.shape[-1] ** -1.0"),
    ),
    *_mutants(
        "causal_core/trees/blocks.py",
        BLOCKS,
        ("own[node - start] = own[parent - start]", "own[node - start, parent - start] = True"),
        ("own[node - start, node - start] = True", "pass"),
        ("ranges.append((self.starts[above], self.ends[above]))",
         "ranges.append((self.starts[above], self.subtree_end[above]))"),
        ("if parent < 0 or forks[parent] or parent", "if parent < 0 or parent"),
        ("stack.extend(reversed(children[node]))", "stack.extend(children[node])"),
        ("runs[chain] = partition if split < whole else None", "runs[chain] = None"),
        ("if start == joined[-1][1]:", "if start >= joined[-1][1]:"),
    ),
    *_mutants(
        "causal_core/trees/intervals.py",
        "causal_core/trees/test_intervals.py",
        ("end[parent] < end[node]", "end[parent] > end[node]"),
        ("ends.min(1)[None] >= first[:, None] + BUCKET", "ends.min(1)[None] >= first[:, None]"),
        ("ends.max(1)[None] > first[:, None]", "ends.max(1)[None] > first[:, None] + BUCKET"),
        ("every &= depths.max(1)[:, None] - depths.min(1)[None] < window", "pass"),
        ("(mixed, every, mixed.T, every.T)", "(mixed, every, mixed, every)"),
    ),
    *_mutants(
        "causal_core/trees/staging.py",
        "causal_core/trees/test_staging.py",
        ("size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT", "size += _ALIGNMENT"),
        ("int(t.storage_offset()) * t.element_size()", "int(t.storage_offset())"),
    ),
)  # fmt: skip

CHECKPOINT = (
    *_mutants(
        "causal_core/checkpoints/contents.py",
        (f"{LOOP}::test_a_damaged_newest_checkpoint_is_skipped_with_a_warning", DAMAGE),
        ("if file_sha256(directory / name) != expected.sha256:", "if False:"),
        ("if size != expected.bytes:", "if size > expected.bytes:"),
        ("if unlisted := sorted(_REQUIRED - manifest.files.keys()):",
         "if unlisted := sorted(_REQUIRED - _REQUIRED):"),
        ("if tensor_sha256(weight) != manifest.tensors[name]:", "if False:"),
        ("if saved.step != manifest.step:", "if False:"),
    ),
    *_mutants(
        "causal_core/checkpoints/contents.py",
        f"{LOOP}::test_a_foreign_base_and_a_newer_format_are_refused",
        ("if version > FORMAT_VERSION:", "if version > FORMAT_VERSION + 1:"),
    ),
    *_mutants(
        "causal_core/checkpoints/checkpoint.py",
        f"{LOOP}::test_a_foreign_base_and_a_newer_format_are_refused",
        ("(\"base model (or adapter to start from)\", manifest.base_fingerprint, base),", ""),
    ),
    *_mutants(
        "causal_core/checkpoints/checkpoint.py",
        CUT_RUN,
        ("            stored_optimizer(directory),\n", "            {},\n"),
    ),
    *_mutants(
        "causal_core/checkpoints/checkpoint.py",
        f"{LOOP}::test_another_config_is_refused_with_the_difference",
        ("if manifest.config_fingerprint != config.fingerprint():", "if False:"),
    ),
    *_mutants(
        "causal_core/checkpoints/checkpoint.py",
        ENGINE_STATE,
        ("if written.get(name) != tuple(shape)", "if name not in written"),
        ("elif key in MOMENTS and shape != tuple(shapes[name]):", "elif False:"),
    ),
    *_mutants(
        "causal_core/checkpoints/checkpoint.py",
        PEFT,
        ("if name in stored and stored[name].shape != shape", "if False"),
        ("is unexpected\" for name in stored if name not in shapes]",
         "is unexpected\" for name in stored if name is None]"),
    ),
    *_mutants(
        "causal_core/checkpoints/store.py",
        f"{LOOP}::test_a_damaged_newest_checkpoint_is_skipped_with_a_warning",
        ("for name in reversed(self.names()):", "for name in self.names():"),
    ),
    *_mutants(
        "causal_core/checkpoints/store.py",
        "causal_core/checkpoints/test_store.py",
        ("for name in names[:-count]:", "for name in names[: -count - 1]:"),
        ("files = sorted(directory.iterdir(), key=lambda p: p.name == MANIFEST)",
         "files = sorted(directory.iterdir(), key=lambda p: p.name != MANIFEST)"),
    ),
    *_mutants(
        "causal_core/run/saving.py",
        "causal_core/run/test_altered.py",
        ("if plan.samples_after(saved.step) != saved.samples:",
         "if plan.samples_after(saved.step) < saved.samples:"),
        ("if saved.total_steps != plan.total_steps:", "if saved.total_steps < plan.total_steps:"),
    ),
    *_mutants(
        "causal_core/step/random_state.py",
        CUT_RUN,
        ("f\"{seed}/{step}/{rank}\"", "f\"{seed}/{torch.initial_seed()}/{rank}\""),
    ),
)  # fmt: skip

WITNESS = (
    *_mutants(
        "causal_core/evaluation/rows.py",
        ROWS,
        ("and not contains_witness(\n                    clean, attack.witness\n                )",
         "and True"),
        ("exact = attacked.strip() == attack.injection_output.strip()",
         "exact = attacked.strip() == triplet.benign_output.strip()"),
    ),
    *_mutants(
        "causal_core/evaluation/one_pass.py",
        ONE_PASS,
        ("or self._scoring.exact(*question):", "or False:"),
        ("self.asked[number].append(question)", "pass"),
        ("prompts[question] for question in left", "prompts[left[0]] for question in left"),
    ),
    *_mutants(
        "causal_core/evaluation/scoring.py",
        ONE_PASS,
        ("slots.get(row * nodes + int(path[-1]))", "slots.get(row * nodes + int(path[0]))"),
    ),
    *_mutants(
        "causal_core/evaluation/own_margin.py",
        OWN_MARGIN,
        ("sum(one[:shorter]) - sum(other[:shorter])", "sum(one) - sum(other)"),
        ("else [*answer, self._end]", "else answer"),
        ("batch, longest = [], len(one.path) + len(own)", "longest = len(one.path) + len(own)"),
        ("if own[:shorter] != wanted[:shorter]:", "if True:"),
    ),
    *_mutants(
        "causal_core/trees/path_cache.py",
        OWN_MARGIN,
        ("allowed = columns <= ends", "allowed = columns <= ends[:, -1:]"),
        ("allowed &= ends - columns < window", "pass"),
    ),
    *_mutants(
        "causal_core/model/attention_kernels.py",
        OWN_MARGIN,
        ("sinks.expand(-1, -1, count).flatten(1)", "sinks.expand(-1, -1, count).mT.flatten(1)"),
    ),
    *_mutants(
        "causal_core/evaluation/scoring.py",
        ROWS,
        ("difference = self.witness_logp_attacked - self.witness_logp_clean",
         "difference = self.witness_logp_clean - self.witness_logp_attacked"),
        ("columns[name][without] = np.nan", "pass"),
        ("np.logical_and.at(greedy, owners,", "np.logical_or.at(greedy, owners,"),
        ("np.add.at(logp, owners, found", "np.maximum.at(logp, owners, found"),
        ("z[of, place] = output.z[index]", "z[of, place] = output.pooled[index]"),
        ("self.benign_exact[self.first].mean()", "self.benign_exact.mean()"),
        ("float(-logp.sum() / max(1, int(tokens.sum())))", "float(-(logp / tokens).mean())"),
    ),
)  # fmt: skip

STATISTICS = (
    *_mutants(
        "causal_core/evaluation/statistics.py",
        "causal_core/evaluation/test_statistics.py",
        ("Z95 = 1.959963984540054", "Z95 = 1.644853626951472"),
        ("centre = (p + Z95**2 / (2 * size)) / denominator", "centre = p / denominator"),
        ("+ Z95**2 / (4 * size * size)) / denominator", ") / denominator"),
        ("math.sqrt(array.size)\n", "array.size\n"),
        ("array.std(ddof=1)", "array.std(ddof=0)"),
        ("return float(np.exp(-(p * np.log(p)).sum()))", "return float(-(p * np.log(p)).sum())"),
        ("if one.high < other.low:", "if one.value < other.low:"),
    ),
    *_mutants(
        "causal_core/evaluation/row_by_row.py",
        "causal_core/evaluation/test_row_by_row.py",
        ("return min(1.0, 2 * tail)", "return tail"),
        ("range(extreme, n + 1)", "range(extreme + 1, n + 1)"),
        ("one = sum(a and not b for a, b in pairs)", "one = sum(bool(a) for a, b in pairs)"),
        ("rows.only_reference > rows.only_trained", "rows.only_reference < rows.only_trained"),
    ),
)  # fmt: skip

BUDGET = (
    *_mutants(
        "tune_spaces/budget.py",
        "tune_spaces/test_campaign.py",
        ("if smallest.required_bytes <= budget]", "if smallest.peak_bytes // 2 <= budget]"),
        ("chosen = min(fitting, key=lambda name: full.get(name, 0.0))", "chosen = fitting[0]"),
        ("largest_micro_batch(config, self.budgets[chosen], data=data)",
         "largest_micro_batch(config, self.budget_bytes, data=data)"),
        ("        if not fitting:", "        if fitting is None:"),
        ("if share < 1 else int(gpus / share", "if share < 0 else int(gpus / share"),
        ("slots = workers // resources.max_workers", "slots = workers"),
    ),
    *_mutants(
        "causal_core/memory/fit.py",
        "causal_core/memory/test_plan.py",
        ("if low_bytes > budget:", "if low_bytes > 2 * budget:"),
        ("        if found <= budget:", "        if found <= 1.02 * budget:"),
    ),
)  # fmt: skip

SELECTION = _mutants(
    "causal_core/run/selection.py",
    "causal_core/run/test_selection.py",
    ("value = max(0.0, value)", "value = abs(value)"),
    ("slack = max(config.benign_tolerance * self.lowest_benign_nll, _SLACK_NATS)",
     "slack = config.benign_tolerance * self.lowest_benign_nll"),
    ("if nll > bound:", "if nll > 10 * bound:"),
    ("sign = -1.0 if config.metric", "sign = 1.0 if config.metric"),
    ("if better or unseated:", "if better:"),
    ("gain > config.min_improvement", "gain > 0"),
    ("nll < self.benign_nll\n", "nll > self.benign_nll\n"),
    ("if not (math.isfinite(value) and math.isfinite(nll)):", "if not math.isfinite(nll):"),
)  # fmt: skip

SCHEDULE = (
    *_mutants(
        "causal_core/run/schedule.py",
        BATCHES,
        ("return math.ceil(total_steps * warmup_ratio)", "return int(total_steps * warmup_ratio)"),
        ("return peak * (step + 1) / warmup", "return peak * step / warmup"),
        ("math.cos(math.pi * progress)", "math.cos(2 * math.pi * progress)"),
        ("progress = (step - warmup) / max(1, total_steps - warmup)",
         "progress = step / max(1, total_steps)"),
        ("return peak * (1.0 - progress)", "return peak * (1.0 - progress / 2)"),
    ),
    *_mutants(
        "causal_core/run/position.py",
        "causal_core/run/test_position.py",
        ("self.skipped_in_a_row = 0\n            return", "return"),
        ("if self.skipped_in_a_row > max_skipped:", "if self.skipped_in_a_row > max_skipped + 1:"),
    ),
)  # fmt: skip

OPTIMIZER = _mutants(
    "causal_core/engines/optimizer.py",
    "causal_core/engines/test_optimizer.py",
    ("rest = [p for p in parameters.values() if p.ndim < 2]",
     "rest = [p for p in parameters.values() if p.ndim < 1]"),
    ("{\"params\": rest, \"weight_decay\": 0.0}",
     "{\"params\": rest, \"weight_decay\": config.weight_decay}"),
    ("return buffer_of(parameter, dtype=value.dtype).copy_(value)", "return value.clone()"),
)  # fmt: skip

DEVICE = (
    *_mutants(
        "causal_core/device.py",
        "causal_core/test_device.py",
        ("torch.set_float32_matmul_precision(\"highest\")", "pass"),
        ("if _ALLOCATOR_BEFORE not in os.environ:", "if True:"),
        ("os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)", "pass"),
        ("torch.use_deterministic_algorithms(deterministic)", "pass"),
    ),
    *_mutants(
        "causal_core/model/device_costs.py",
        "causal_core/model/test_packing_cost.py",
        ("nodes, dtype = 4 * _LARGE, computing_type(model)",
         "nodes, dtype = 4 * _LARGE, torch.float32"),
        ("*attention_shape(model), *_weights_of_layers(model))", "*attention_shape(model))"),
    ),
    *_mutants(
        "causal_core/run/session.py",
        "causal_core/run/test_session.py",
        ("if number != found[0]]:", "if number > found[0]]:"),
        ("    if engine.collective_forward:  #", "    if False:  #"),
    ),
)  # fmt: skip

TOKENISING = (
    *_mutants(
        "causal_core/tokens/ragged.py",
        "causal_core/tokens/test_ragged.py",
        ("return np.minimum(first - offsets[:-1], shorter)", "return first - offsets[:-1]"),
        ("self.offsets[chosen] + first, offsets", "self.offsets[chosen], offsets"),
    ),
    *_mutants(
        "causal_core/tokens/encoding.py",
        "causal_core/tokens/test_columns.py",
        ("if text[0] not in within and not any", "if not any"),
        ("if t.normalized or t.lstrip or t.single_word", "if t.normalized or t.single_word"),
        ("backend.truncation or backend.padding or backend.encode_special_tokens", "False"),
    ),
    *_mutants(
        "causal_core/tokens/parted.py",
        "causal_core/tokens/test_columns.py",
        ("np.logical_and.at(fine, row_of, fine_rests[turn])", "pass"),
        ("fine = fine_heads[system]", "fine = np.ones(len(systems), bool)"),
    ),
    *_mutants(
        "causal_core/tokens/tokenise.py",
        "causal_core/tokens/test_tokenise.py",
        ("if cache.rows_of(shard.file, shard.number) != shard.rows:", "if True:"),
        ("and not isinstance(error, UnwritableError)", ""),
    ),
    *_mutants(
        "causal_core/data/shards.py",
        "causal_core/tokens/test_tokenise.py",
        ("number = (line - 1) // SHARD_ROWS", "number = line // SHARD_ROWS"),
        ("self.file, self.number = self.file + 1, 0", "self.file, self.number = self.file, 0"),
    ),
)  # fmt: skip

MUTANTS = (
    *LOSSES, *DENOMINATORS, *PREFIX_TREE, *BATCHING, *ATTENTION, *CHECKPOINT, *WITNESS,
    *STATISTICS, *BUDGET, *SELECTION, *SCHEDULE, *OPTIMIZER, *DEVICE, *TOKENISING,
    Mutant(
        "causal_core/model/lora.py",
        "grad_x_NI = frozen_linear(grads[0], weight_OI.t())",
        "grad_x_NI = linear(grads[0], weight_OI.t())",
        ("tests/causal_core/model/test_matmul.py",),
    ),
    Mutant(
        "causal_core/run/session.py",
        "speed = kept.bfloat16_speed or measured.bfloat16_speed",
        "speed = measured.bfloat16_speed",
        ("tests/causal_core/run/test_bfloat16.py",),
    ),
)  # fmt: skip
