"""Build hook: makes the protobuf and gRPC stubs under ``swarm/api`` from ``proto/``.

The stubs are never in git. The virtual import path ``swarm/api`` is mapped to ``proto/``, so that
generated modules import each other under the names they have in the installed package. Runs for
wheels, for editable installs, and by hand: ``python deploy/build_stubs.py``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
VIRTUAL = "swarm/api"


def build(root: Path = ROOT) -> list[Path]:
    """Generate every stub below ``root`` and return the generated packages.

    Raises:
        RuntimeError: protoc refused a contract; its own message is on stderr.
    """
    from grpc_tools import protoc

    source = root / "proto"
    contracts = sorted(source.rglob("*.proto"))
    packages = sorted(
        {source_dir.relative_to(source) for source_dir in _with_parents(contracts, source)}
    )
    with tempfile.TemporaryDirectory(prefix="overswarm-stubs-") as scratch:
        output = Path(scratch)
        arguments = [
            "protoc",
            f"-I{VIRTUAL}={source}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",
            f"--python_out={output}",
            f"--grpc_python_out={output}",
            *_typing_arguments(output),
            *(f"{VIRTUAL}/{path.relative_to(source)}" for path in contracts),
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc refused the contracts in proto/")
        for package in packages:
            folder = output / VIRTUAL / package
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(
                f'"""Generated from proto/{package}; not in git."""\n'
            )
            _replace_changed(folder, root / VIRTUAL / package)
    return [root / VIRTUAL / package for package in packages]


def _replace_changed(made: Path, target: Path) -> None:
    """Bring ``target`` to the state of ``made``, touching only what differs: readers never see a gap."""
    target.mkdir(parents=True, exist_ok=True)
    fresh = {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    for name, content in fresh.items():
        if not (target / name).exists() or (target / name).read_bytes() != content:
            beside = target / f".{name}"
            beside.write_bytes(content)
            beside.replace(target / name)
    for stale in (*target.glob("*_pb2*.py"), *target.glob("*_pb2*.pyi")):
        if stale.name not in fresh:
            stale.unlink()


def _with_parents(contracts: list[Path], source: Path) -> set[Path]:
    folders: set[Path] = set()
    for contract in contracts:
        folder = contract.parent
        while folder != source:
            folders.add(folder)
            folder = folder.parent
    return folders


def _typing_arguments(root: Path) -> list[str]:
    """Ask for ``.pyi`` files; the plugins stand beside the interpreter or on PATH."""
    arguments = []
    for plugin, output in (
        ("protoc-gen-mypy", "mypy_out"),
        ("protoc-gen-mypy_grpc", "mypy_grpc_out"),
    ):
        beside = Path(sys.executable).parent / plugin
        found = str(beside) if beside.exists() else shutil.which(plugin)
        if found is None:
            raise RuntimeError(f"{plugin} not found: pip install mypy-protobuf")
        arguments += [f"--plugin={plugin}={found}", f"--{output}={root}"]
    return arguments


class StubsHook(BuildHookInterface[Any]):
    """Hatchling's entry point."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Generate the stubs before anything is packed."""
        build(Path(self.root))


if __name__ == "__main__":
    for package_path in build():
        print(package_path.relative_to(ROOT))
