"""Collects what our kernels log (where ATen runs instead, and why), and shortens exceptions to one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("vsa_compile.gpu", "vsa_compile.cpu")


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.INFO)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect, instead of printing, what the loggers of our kernels say; each text once."""
    texts: list[str] = []
    collector = _Collector(texts)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield texts
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(collector)
            logger.setLevel(level)
            logger.propagate = propagate


def reason_of(error: BaseException) -> str:
    """The first line of an error, and of its root cause: compilers often wrap the interesting one."""
    texts = [_first_line(error)]
    while error.__cause__ is not None:
        error = error.__cause__
    if _first_line(error) not in texts:
        texts.append(_first_line(error))
    return ": ".join(texts)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
