"""Measures what a mixture and a pool's endpoint add to DSPy's own work, as ratios of one run.

Usage: python tests/bench/mixture_overhead.py [--json] [--quick] [--only PART]

Starts latency_server.py and asks it from three scripts, each in a process of its own, whose first
lines say what each number is: mixture_speed.py (wall_over_critical_path_*, cpu_over_predicts_*,
throughput_over_gather), endpoint_speed.py (calls_per_second_over_plain_lm_*) and, without and with
a store, memory_growth.py (memory_mb_store_*: growth over the second half of 20,000 calls).
It takes about two minutes; ``--quick`` only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Numbers = dict[str, float]
QUICK = {
    "mixture_speed.py": "--rounds 1 --mixtures 1 --at-once 2 --latency-ms 40",
    "endpoint_speed.py": "--rounds 1 --calls 32",
    "memory_growth.py": "--calls 140",
}


class Scripts:
    """Runs the scripts beside this one against one server."""

    def __init__(self, url: str, *, is_quick: bool) -> None:
        self.url, self.sizes = url, QUICK if is_quick else {}

    def started(self, script: str, path: str, *arguments: str) -> subprocess.Popen[str]:
        sizes = self.sizes.get(script, "").split()
        return started(script, f"{self.url}{path}", *arguments, *sizes)

    def mixture(self) -> Numbers:
        return printed_by(self.started("mixture_speed.py", ""))

    def endpoint(self) -> Numbers:
        return printed_by(self.started("endpoint_speed.py", "/0/v1"))

    def memory(self) -> Numbers:
        """Run both at the same time: memory does not mind a busy processor."""
        script, path = "memory_growth.py", "/0/v1"
        running = {on: self.started(script, path, "--store", on) for on in ("off", "on")}
        numbers: Numbers = {}
        for on, process in running.items():
            printed = printed_by(process)
            numbers[f"memory_mb_store_{on}"] = printed["growth_mb"]
            numbers[f"memory_mb_at_end_store_{on}"] = printed["at_end_mb"]
        return numbers


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def printed_by(process: subprocess.Popen[str]) -> Numbers:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} failed")
    numbers: Numbers = json.loads(out)
    return numbers


@contextmanager
def latency_server() -> Iterator[str]:
    """Run the server in its own process and yield its address, ``http://127.0.0.1:PORT``."""
    with started("../servers/latency_server.py") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Measure what a mixture adds to DSPy's own work.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--only", choices=("mixture", "endpoint", "memory"), help="one part")
    options = parser.parse_args(arguments)
    numbers: Numbers = {}
    with latency_server() as url:
        scripts = Scripts(url, is_quick=options.quick)
        for part in ("mixture", "endpoint", "memory"):
            if options.only in (None, part):
                numbers |= getattr(scripts, part)()
    print(json.dumps(numbers, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
