"""The worker's side of `process.py`: `python -m ray_jobs.training.worker_process`.

Reads jobs from its standard input, one line of JSON each, and answers each by a line. It ends when
that input does, in the middle of a job as well: then the driver is gone.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ray_jobs.training.process import QUANTIZED

Job = Callable[[Mapping[str, Any]], Any]


def main() -> None:
    """Answers jobs until the driver goes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    for asked_to_end in (signal.SIGINT, signal.SIGTERM):  # of a whole group: the driver says when
        signal.signal(asked_to_end, signal.SIG_IGN)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    jobs = _jobs(quantized=QUANTIZED in sys.argv)
    while True:
        name, job = json.loads(requests.get())
        print(_answer(jobs[name], job), file=answers, flush=True)
        _give_back()


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _jobs(quantized: bool) -> dict[str, Job]:
    """What it can do; imports what that needs, so that a job need not wait for it."""
    from ray_jobs.console.quiet import quiet_libraries

    quiet_libraries()
    from transformers import AutoModelForCausalLM  # noqa: F401

    import causal_core.evaluation.rows
    import causal_core.run.loop  # noqa: F401
    from causal_core.model.plain_peft import without_bitsandbytes
    from causal_core.quantised import bitsandbytes
    from ray_jobs.training.worker import evaluation_worker, train_alone

    if quantized:
        bitsandbytes()
    with without_bitsandbytes(None):
        import peft  # noqa: F401
    return {"train": train_alone, "evaluate": evaluation_worker}


def _answer(job: Job, values: Mapping[str, Any]) -> str:
    try:
        return json.dumps({"result": job(values)})
    except Exception as error:  # noqa: BLE001 - the driver decides what it means
        last = traceback.format_exception_only(error)[-1].strip()
        return json.dumps(
            {
                "raised": type(error).__name__,
                "message": str(error),
                "why": last,
                "account": traceback.format_exc(),
            }
        )


def _give_back() -> None:
    """The memory of a job, before the next one: models refer to themselves."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
