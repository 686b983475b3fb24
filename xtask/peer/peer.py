"""
The other side of `cargo xtask bench --peer`: the same work in PyTorch, Transformers and PEFT.

    peer.py prepare WORK              models, adapters and batches that both sides read
    peer.py WORKLOAD WORK --threads N a worker

A worker loads, runs its work once and prints `{"ready": true, ..}`. Then every line `run` on its input runs the work once
and is answered by one line of JSON with the seconds; `quit` ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("workload")
    arguments.add_argument("work", type=Path)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if options.workload == "prepare":
        import prepare

        prepare.write(options.work)
        return

    import workloads

    work = workloads.WORKLOADS[options.workload](options.work)
    first = work.warm_up()
    say(
        {
            "ready": True,
            "threads": torch.get_num_threads(),
            "version": f"torch {torch.__version__}, transformers {transformers.__version__}, peft {version_of('peft')}",
        }
        | first
    )
    for line in sys.stdin:
        command = line.strip()
        if command == "quit":
            return
        if command != "run":
            raise SystemExit(f"expected `run` or `quit`, found `{command}`")
        start = time.perf_counter()
        answer = work.run()
        say({"seconds": time.perf_counter() - start} | answer)


def version_of(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
