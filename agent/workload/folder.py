"""A workload's directory: what it was asked to be, how it is, and its files under ``/etc``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agent.workload import files
from agent.workload.spec import State, WorkloadSpec, decode_spec, encode_spec
from swarm.errors import ConflictError

_SETTLED: Final = "settled"
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Folder:
    """The directory of one workload, written by the agent and by the workload's shim."""

    path: Path

    def lay(self, spec: WorkloadSpec) -> None:
        """Make the directory, with all that a shim needs to begin.

        Raises:
            ConflictError: it exists.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError as error:
            raise ConflictError(f"{self.path} exists already") from error
        for name, text in (
            ("resolv.conf", files.resolv_conf(spec.dns_search, spec.dns_options)),
            ("hosts", files.hosts(spec.effective_hostname, (), spec.extra_hosts)),
            ("hostname", f"{spec.effective_hostname}\n"),
        ):
            (self.path / name).write_text(text, encoding="utf-8")
            (self.path / name).chmod(0o644)
        self._replace("spec.json", encode_spec(replace(spec, env=_environment(spec))))

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def spec(self) -> WorkloadSpec:
        """Read what the workload was asked to be.

        Raises:
            OSError, SwarmError: nothing can be made of it.
        """
        return decode_spec((self.path / "spec.json").read_text(encoding="utf-8"))

    def status(self) -> dict[str, Any] | None:
        """Return what the shim wrote last; None if nothing can be made of it."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
            State(status["state"])
            if {"pid", "exit_code"} <= status.keys():
                return dict(status)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def set_status(self, status: Mapping[str, Any]) -> None:
        """Write a status in the place of a shim that is gone."""
        self._replace("status.json", json.dumps(status))

    def set_addresses(self, spec: WorkloadSpec, addresses: Iterable[str]) -> None:
        """Put the workload's own addresses into its hosts file, in the place of earlier ones."""
        text = files.hosts(spec.effective_hostname, addresses, spec.extra_hosts)
        # In place: what the workload sees is this very file, bound over /etc/hosts.
        (self.path / "hosts").write_text(text, encoding="utf-8")

    @property
    def settled(self) -> bool:
        """Whether all was done that a workload's end asks for."""
        return (self.path / _SETTLED).exists()

    def settle(self) -> None:
        """Note that all was done that a workload's end asks for."""
        self._replace(_SETTLED, "")

    def _replace(self, name: str, text: str) -> None:
        """Replace a file's content at once, so that a reader sees the old or the new one."""
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o600)
        temporary.replace(self.path / name)


def _environment(spec: WorkloadSpec) -> dict[str, str]:
    defaults = {"PATH": _DEFAULT_PATH, "HOME": "/root", "HOSTNAME": spec.effective_hostname}
    if spec.tty:
        defaults["TERM"] = "xterm"
    return defaults | dict(spec.env)
