"""For all tests: hypothesis profiles, NaN in scratch memory, a clean Dynamo, few searches for garbage."""

import gc
import logging
import os

import profiles
import pytest
import torch

from vsa_compile.ops.cpu import loader

profiles.load()

# xdist and the runner of mutants have one process a core; several threads in each would fight for them.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ or profiles.PROFILE == "mutants" else 2)


class _Failures(logging.Handler):
    """Our analysis may fail in the field, where calls then stay dense; in a test that is an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(self.format(record))


for name in ("vsa_compile.analysis", "vsa_compile.backend"):
    logging.getLogger(name).addHandler(_Failures(logging.WARNING))

# torch formats its structured trace, 6 % of the time, where somebody listens; and pytest listens to every
# logger that does not propagate.
logging.getLogger("torch.__trace").propagate = True

# Processes that tests start run the kernel as it is shipped.
_source = loader.source
loader.source = lambda variant: "#define VSA_POISON_SCRATCH\n" + _source(variant)


@pytest.fixture(autouse=True)
def _clean_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Searching all that was imported for garbage, again and again, is 14 % of what Dynamo's tests take."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
