"""Runs `python -m train` with its flags, then says how much of the device it took at most.

    python -m benchmarks.accelerator.trained --config=configs/digits.py --workdir=runs/x

Its exit code is the trainer's. The last line of standard output is one of JSON.
"""

import json
import runpy
import sys

import jax


def main() -> int:
    """The program."""
    try:
        runpy.run_module("train", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    card = jax.local_devices()[0].device_kind
    print(json.dumps({"peak_gb": None if peak is None else peak / 1e9, "card": card}), flush=True)
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    sys.exit(main())
