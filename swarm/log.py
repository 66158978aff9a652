"""Logging for every process: structlog, colours on a terminal, one JSON object per line otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

_MAX_FRAMES: Final = 50

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(*, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging once per process, before the first component starts.

    Args:
        level: one of :data:`LEVELS`.
        stream: where lines go; standard error when absent.
    """
    out = sys.stderr if stream is None else stream
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if out.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_tracebacks(out),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )


def _tracebacks(out: TextIO) -> list[structlog.types.Processor]:
    """Tracebacks as data for machines, without local variables: those hold keys and tokens."""
    if out.isatty():
        return []
    without_locals = ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES)
    return [structlog.processors.ExceptionRenderer(without_locals)]
