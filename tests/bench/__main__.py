"""Run benchmarks and print a table of each: ``python -m tests.bench [NAME...]``.

A benchmark is a module of this folder with ``run() -> Sequence[Row]``; the first line of its docstring
is the table's title. Progress goes to standard error, results to standard output. The status is 1 when
a benchmark failed, 0 otherwise, whatever was measured.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for ``support`` and ``bench``

from bench.table import Row, SkippedError, render

INTERRUPTED = 128 + signal.SIGINT


def benchmarks() -> dict[str, str]:
    """Return the title of every benchmark by its name, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(each, ast.FunctionDef) and each.name == "run" for each in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or path.stem).splitlines()[0]
    return found


def main() -> int:
    """Run what is asked for; return the exit status."""
    known = benchmarks()
    width = max(map(len, known))
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Run benchmarks, all when none is named, and print a table of each.",
        epilog="\n".join(["benchmarks:", *(f"  {n:<{width}}  {t}" for n, t in known.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help="which to run, of those below")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.name) - known.keys()):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    # Measurements own processes, namespaces and files; they let go of them when this unwinds.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: dict[str, Any] = {}
    failed = False
    for name in chosen.name or known:
        title, began = known[name], time.monotonic()
        print(f"{name}: {title}", file=sys.stderr, flush=True)
        try:
            rows = _measured(name)
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return INTERRUPTED
        except SkippedError as reason:
            print(f"{name}: skipped: {reason}", file=sys.stderr)
            results[name] = {"title": title, "skipped": str(reason)}
            continue
        except Exception as error:  # noqa: BLE001  # the others can still be measured
            traceback.print_exc()
            failed = True
            results[name] = {"title": title, "failed": repr(error)}
            continue
        seconds = round(time.monotonic() - began, 1)
        print(f"{name}: done in {seconds:.0f} s", file=sys.stderr, flush=True)
        if chosen.json:
            rows_ = [row.plain for row in rows]
            results[name] = {"title": title, "seconds": seconds, "rows": rows_}
        else:
            render(title, rows)
    if chosen.json:
        json.dump({"machine": _machine(), "benchmarks": results}, sys.stdout, indent=2)
        print()
    return 1 if failed else 0


def _measured(name: str) -> Sequence[Row]:
    rows: Sequence[Row] = importlib.import_module(f"bench.{name}").run()
    gc.collect()  # what one benchmark leaves behind is not the next one's to clean up
    return rows


def _machine() -> dict[str, Any]:
    """Describe where the numbers come from."""
    load = 0.0
    with contextlib.suppress(OSError):
        load = os.getloadavg()[0]
    return {
        "kernel": platform.release(),
        "load": round(load, 2),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
