"""Tests that need a kernel with ESP: one emulated machine runs them all, each is reported here.

On this machine a test function of this folder is only a name. The first one to run boots the guest,
which runs all that were selected; the others read their outcome from its report. Inside the guest
(``OVERSWARM_GUEST`` is set) they are ordinary tests.
"""

from __future__ import annotations

import contextlib
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import machine
from netns.dataplane import child
from netns.dataplane.conftest import Child, World, network_of

INSIDE = "OVERSWARM_GUEST" in os.environ
TIMEOUT = 1750
"""Seconds for the boot and all tests. Measured on two cores shared with other work: 330 to 470 without the engine,
and with it 500 to 850 more."""

Results = dict[str, list[tuple[str, str]]]
_RESULTS = pytest.StashKey[Results | BaseException]()


class GuestItem(pytest.Item):
    """A test function that runs in the guest, with all its parameters."""

    line = 0

    def runtest(self) -> None:
        """Take the outcome from the guest's report, and boot the guest first if nobody has."""
        if _RESULTS not in self.config.stash:
            self.config.stash[_RESULTS] = _boot_once(self.session)
        results = self.config.stash[_RESULTS]
        if isinstance(results, BaseException):
            raise results
        cases = results.get(self.name, [])
        if not cases:
            raise RuntimeError("the guest ended without running this test")
        bad = [text for kind, text in cases if kind in {"failure", "error"}]
        if bad:
            raise AssertionError("\n\n".join(bad))
        if all(kind == "skipped" for kind, _ in cases):
            pytest.skip(cases[0][1])

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """Show the guest's text as it is."""
        del style
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where it is."""
        return self.path, None, self.name


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> Any:
    """Make a name of a test function, unless we are the guest or its module stays outside."""
    if (
        INSIDE
        or getattr(collector.obj, "OUTSIDE", False)
        or not name.startswith("test_")
        or not callable(obj)
    ):
        return None
    item = GuestItem.from_parent(collector, name=name)
    item.line = obj.__code__.co_firstlineno
    item.add_marker(pytest.mark.kernel)
    return [item]


def _boot_once(session: pytest.Session) -> Results | BaseException:
    """Return the outcomes, or why there are none: another try would take as long to fail."""
    try:
        return _boot(session)
    except (RuntimeError, OSError, pytest.skip.Exception) as error:
        return error


def _boot(session: pytest.Session) -> Results:
    try:
        cache = machine.prepare()
    except machine.UnavailableError as error:
        pytest.skip(f"needs an emulated kernel with ESP: {error}")
    items = [item for item in session.items if isinstance(item, GuestItem)]
    items.sort(key=lambda item: (item.path, item.line))
    factory: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]  # public as a fixture
    share = factory.mktemp("guest")
    result = machine.run(
        [
            sys.executable,
            *("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-q"),
            *("--junitxml=/run/out/report.xml", "-o", "junit_family=xunit1", "--durations=0"),
            *[f"{item.path}::{item.name}" for item in items],
        ],
        cache=cache,
        share=share,
        environment={
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": "/run",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OVERSWARM_GUEST": "1",
        },
        keep=(Path(sys.prefix),),
        timeout=TIMEOUT,
    )
    figures = [f"guest: {result.seconds:.0f} s"]
    if os.environ.get("OVERSWARM_GUEST_OUTPUT"):
        Path(os.environ["OVERSWARM_GUEST_OUTPUT"]).write_text(result.output, encoding="utf-8")
    report = share / "report.xml"
    if not report.exists():
        text = f"{result.console[-2000:]}\n{result.output[-4000:]}"
        raise RuntimeError(f"the guest left no report after {result.seconds:.0f} s\n{text}")
    found: Results = {}
    for case in ET.parse(report).iter("testcase"):  # written by ourselves
        name = case.get("name", "").split("[")[0]
        verdict = ("passed", "")
        for kind in ("failure", "error", "skipped"):
            if (node := case.find(kind)) is not None:
                verdict = (kind, f"{case.get('name')}: {node.text or node.get('message', '')}")
        found.setdefault(name, []).append(verdict)
        figures += [
            f"{case.get('name')}: {item.get('name')} {item.get('value')}"
            for item in case.iter("property")
        ]
    session.config.stash[_FIGURES] = figures
    return found


_FIGURES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the figures that the tests have taken."""
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)


# --- in the guest ----------------------------------------------------------------------------


class Forked:
    """A child process forked from this one: starting Python anew takes seconds here."""

    def __init__(self, role: str) -> None:
        ask, answer = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(ask[0], 0)
            os.dup2(answer[1], 1)
            for fd in range(3, 256):
                with contextlib.suppress(OSError):
                    os.close(fd)
            sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(2, "w")
            try:
                child.main(role)
            finally:
                os._exit(1)
        os.close(ask[0])
        os.close(answer[1])
        self.stdin = os.fdopen(ask[1], "wb")
        self.stdout = os.fdopen(answer[0], "rb")
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return its status, None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, _timeout: float) -> int:
        """Wait for its end."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, 9)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty world; everything made in it is gone afterwards."""
    monkeypatch.setattr(Child, "spawn", staticmethod(Forked))
    directory = tmp_path / "w"
    directory.mkdir()
    made = World(directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def network() -> Any:
    """The maker of network records."""
    return network_of
