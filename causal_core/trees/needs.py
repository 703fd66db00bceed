"""What a forward computes of each triplet: pooled branches and label groups.

A triplet has one branch U, one U' (where a term on representations asks for it, in every triplet)
and a branch for each of its injections U*.
"""

from __future__ import annotations

from dataclasses import dataclass

# Label groups, by what is predicted after which prompt.
TASK = "task"  # the benign answer after U
# The invariance term's two sides, for triplets whose safe answer is the benign answer. Where it is
# another one (a refusal, say), answering as if there were no attack is not what is wanted.
SHARED_CLEAN = "shared_clean"  # the shared answer after U: teacher
SHARED_ATTACKED = "shared_attacked"  # the shared answer after U*: student
ROBUST = "robust"  # the safe answer after U*
ATTACK = "attack"  # after U*: what the attack wants to be answered
WITNESS_CLEAN = "witness_clean"  # the witness of each injection after U
WITNESS_ATTACKED = "witness_attacked"  # the witness after U*
# Prompts whose representation is pooled, in the order of U, U', U*.
BENIGN, COUNTERFACTUAL, INJECTION = "benign", "counterfactual", "injection"
BRANCHES = (BENIGN, COUNTERFACTUAL, INJECTION)
# The prompt that each group's labels follow.
BRANCH_OF = {
    TASK: BENIGN,
    SHARED_CLEAN: BENIGN,
    SHARED_ATTACKED: INJECTION,
    ROBUST: INJECTION,
    ATTACK: INJECTION,
    WITNESS_CLEAN: BENIGN,
    WITNESS_ATTACKED: INJECTION,
}
ONCE_A_TRIPLET = (TASK,)  # the other groups have labels for each of its injections


@dataclass(frozen=True)
class Needs:
    """What a forward must compute of each triplet; the rest of its tokens get no node."""

    branches: tuple[str, ...]  # pooled prompts, a part of `BRANCHES` in its order
    groups: tuple[str, ...]  # label groups
