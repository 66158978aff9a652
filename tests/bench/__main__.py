"""``python -m tests.bench [NAME...]``: run the benchmarks and print one table each."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for ``support``

from bench.table import render

_INFRASTRUCTURE = {"__main__", "table", "group"}


def names() -> list[str]:
    """Return the names of all benchmarks."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name not in _INFRASTRUCTURE)


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(names())}; all when none is named")
    chosen = parser.parse_args().name or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    for name in chosen:
        module = importlib.import_module(f"bench.{name}")
        title = (module.__doc__ or name).splitlines()[0]
        render(title, module.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
