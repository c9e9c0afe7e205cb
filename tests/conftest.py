"""Hypothesis profiles, and a clean Dynamo for every test."""

import logging
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fuzz", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# xdist runs one worker a core; several threads in each would fight for them.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


class _RuleFailures(logging.Handler):
    """Layout rules may fail in the field, where the call then stays dense; in a test that is an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(self.format(record))


logging.getLogger("vsa_compile.layout").addHandler(_RuleFailures(logging.WARNING))


@pytest.fixture(autouse=True)
def _clean_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
