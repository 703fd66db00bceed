"""The training step against what its users would otherwise install, unmodified, in one process.

    pip install -c constraints.txt -e '.[peers]'
    python -m benchmarks.peers [--data built-in long ...] [--repeats N] [--json OUT]

Only `sft`, `dpo` and `grouper` need the extra.
"""
