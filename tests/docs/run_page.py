"""Runs the blocks of one page in their order, in one folder and one Python; reads steps as JSON.

    python tests/docs/run_page.py < steps.json

A process of its own, so that what a page configures ends with it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"no answer of {url}")


def run_shell(step: dict[str, Any]) -> str:
    """Run the commands of a block; return what they printed."""
    command = ["bash", "-euo", "pipefail", "-c", step["text"]]
    if step["mark"] == "beside":
        # Not this process's pipes: their reader would wait for the end of the server.
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        wait_for(step["said"], process)
        return ""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if (done.returncode != 0) != (step["mark"] == "fails"):
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout}")
    return done.stdout


def run_python(step: dict[str, Any], names: dict[str, Any]) -> str:
    """Run a block in the page's Python; return what it printed."""
    printed = io.StringIO()
    code = compile(step["text"], f"{step['page']}:{step['line']}", "exec")
    with redirect_stdout(printed):
        try:
            exec(code, names)
        except BaseException as error:
            if step["mark"] != "fails" or not isinstance(error, Exception):
                raise
            print(f"{type(error).__name__}: {error}")
            return printed.getvalue() + f"{type(error).__name__}: {error}\n"
    if step["mark"] == "fails":
        raise RuntimeError("the block was to fail, and did not")
    return printed.getvalue()


def main() -> None:
    """Run all steps and print what each printed, as JSON, as the last line."""
    names: dict[str, Any] = {"__name__": "__page__"}
    sys.path.insert(0, "")  # as in a Python that was started in the folder
    outputs: list[str] = []
    for step in json.load(sys.stdin):
        output = ""
        print(time.strftime("%T"), step["line"], step["kind"], file=sys.stderr, flush=True)
        try:
            if step["kind"] == "file":
                path = Path(step["title"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step["text"], "utf-8")
            elif step["kind"] == "sh":
                output = run_shell(step)
            else:
                output = run_python(step, names)
        except BaseException:
            print(f"{step['page']}:{step['line']}", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        outputs.append(output)
    print("\n" + json.dumps(outputs), flush=True)
    # Servers of a page may have threads that end with the process only.
    os._exit(0)


if __name__ == "__main__":
    main()
