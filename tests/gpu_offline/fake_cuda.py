"""A CUDA device of a given architecture that can be asked about, but never runs anything.

Autograd on its tensors ends the process (C++ asks a real driver): render under torch.no_grad().
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface

# What Inductor asks of a device: streaming multiprocessors, shared memory of a block, memory, L2 cache.
_DEVICES = {
    (8, 0): ("Fake A100", 108, 166912, 80 << 30, 40 << 20),
    (9, 0): ("Fake H200", 132, 232448, 141 << 30, 60 << 20),
    (10, 0): ("Fake B200", 148, 232448, 180 << 30, 126 << 20),
    (12, 0): ("Fake RTX 5090", 170, 101376, 32 << 30, 96 << 20),
}


def _properties(capability: tuple[int, int]) -> SimpleNamespace:
    name, processors, shared, memory, cache = _DEVICES[capability]
    return SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=processors,
        shared_memory_per_block_optin=shared,
        shared_memory_per_block=49152,
        total_memory=memory,
        L2_cache_size=cache,
        warp_size=32,
        gcnArchName="",
        is_integrated=False,
        clock_rate=1_980_000,
        memory_clock_rate=2_619_000,
        memory_bus_width=5120,
        max_threads_per_block=1024,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        uuid="0",
    )


class _TritonDriver:
    """Triton's driver protocol as far as a compilation uses it: it asks for the target."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda


def _answers(capability: tuple[int, int]) -> dict[str, Any]:
    """What the functions of torch.cuda return."""
    properties = _properties(capability)
    return {
        "is_available": True,
        "is_initialized": True,
        "_is_compiled": True,
        "_lazy_init": None,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "synchronize": None,
        "current_stream": SimpleNamespace(device_index=0, stream_id=0, cuda_stream=0),
        "is_current_stream_capturing": False,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "get_device_name": properties.name,
        "get_arch_list": [f"sm_{capability[0]}{capability[1]}"],
        "is_bf16_supported": True,
        "is_tf32_supported": True,
        "memory_allocated": 0,
        "mem_get_info": (properties.total_memory, properties.total_memory),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }


_indexed = torch.Tensor.__getitem__


def _indexed_without_device_guard(x: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index] for None, slices and integers; the C++ of x[index] asks for a real device first."""
    if x.device.type != "cuda":
        return _indexed(x, index)
    dim = 0
    for item in index if isinstance(index, tuple) else (index,):
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            stop = x.shape[dim] if item.stop is None else item.stop
            x = torch.ops.aten.slice(x, dim, item.start or 0, stop, item.step or 1)
        elif item is Ellipsis:
            dim = x.dim() - (len(index) - 1 - index.index(...)) - 1
        else:
            x = x.select(dim, item)
            continue
        dim += 1
    return x


def _copied_without_device_guard(x: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
    return torch.ops.aten.copy_(x, source, non_blocking)


def _patches(capability: tuple[int, int]) -> Iterator[Any]:
    """Every mock that makes torch believe in the device."""
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._subclasses import fake_tensor

    def always(value: Any) -> Any:
        return lambda *args, **kwargs: value

    answers = _answers(capability)
    for name, value in answers.items():
        yield mock.patch.object(torch.cuda, name, always(value), create=True)
    interface = device_interface.CudaInterface
    for name in ("is_available", "device_count", "current_device", "get_device_properties", "current_stream",
                 "synchronize", "set_device", "memory_allocated", "is_bf16_supported"):  # fmt: skip
        yield mock.patch.object(interface, name, staticmethod(always(answers[name])))
    for name in ("exchange_device", "maybe_exchange_device", "get_raw_stream"):
        yield mock.patch.object(interface, name, staticmethod(always(0)))
    list(device_interface.get_registered_device_interfaces())  # the registry fills itself before we add to it
    yield mock.patch.dict(device_interface.device_interfaces, {"cuda": interface, "cuda:0": interface})

    yield mock.patch.object(torch.Tensor, "__getitem__", _indexed_without_device_guard)
    yield mock.patch.object(torch.Tensor, "copy_", _copied_without_device_guard)
    yield mock.patch.object(torch.version, "cuda", "13.0")
    yield mock.patch.object(torch._C, "_cuda_getCurrentRawStream", always(0), create=True)
    yield mock.patch.object(torch._C, "_cuda_getDeviceCount", always(1), create=True)
    allocates = "_cuda_cudaCachingAllocator_is_enabled"  # else there are no CUDA graphs
    yield mock.patch.object(torch._C, allocates, always(True), create=True)
    yield mock.patch.object(torch.accelerator, "is_available", always(False))
    yield mock.patch.object(torch.accelerator, "current_accelerator", always(torch.device("cuda")))
    if hasattr(fake_tensor, "init_gpu_context"):
        yield mock.patch.object(fake_tensor, "init_gpu_context", always(None))
    # These pattern libraries trace themselves on real device tensors; our kernels need none of them.
    yield mock.patch.object(fuse_attention, "_sfdp_init", always(None))
    yield mock.patch.object(pad_mm, "_pad_mm_init", always(None))
    yield mock.patch.object(misc_patterns, "_misc_patterns_init", always(None))


def _forget_cached_answers() -> None:
    import torch._inductor.utils as inductor_utils
    import torch.utils._triton as triton_utils
    from torch._inductor.codecache import CacheBase
    from torch._inductor.runtime.hints import DeviceProperties

    holders = [*vars(inductor_utils).values(), *vars(triton_utils).values(), DeviceProperties.create]
    for function in [*holders, getattr(CacheBase, "get_system", None)]:
        clear = getattr(function, "cache_clear", None)
        if callable(clear):
            clear()
    device_interface.caching_worker_device_properties.pop("cuda", None)
    device_interface.caching_worker_current_devices.pop("cuda", None)


@contextlib.contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Within it, `device="cuda"` names a GPU of this compute capability, for fake tensors only."""
    from triton.runtime import driver

    with contextlib.ExitStack() as stack:
        for patch in _patches(capability):
            stack.enter_context(patch)
        stack.enter_context(mock.patch.object(driver, "_active", _TritonDriver(capability)))
        _forget_cached_answers()
        stack.callback(_forget_cached_answers)
        yield
