"""When two computations of the same thing agree, and what to say when they do not."""

import torch
from torch import Tensor


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of what was wanted."""
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def assert_same_output(got: Tensor, wanted: Tensor, bound: float = 1e-5) -> None:
    """Equal within fp32 rounding: a sum of a few hundred terms, a few layers deep, stays far below 1e-5."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert got.isfinite().all()
    error = relative_error(got, wanted)
    assert error <= bound, f"relative error {error:.2e} > {bound:.0e}"


def assert_same_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-4) -> None:
    """Every parameter's gradient within rounding of its own norm, or of 1 % of the largest gradient.

    The second clause is for gradients that are zero in exact arithmetic (a key bias has none), of which
    rounding is all there is.
    """
    assert got.keys() == wanted.keys()
    largest = max(float(grad.norm()) for grad in wanted.values())
    for name, grad in wanted.items():
        error = float((got[name] - grad).norm())
        allowed = bound * max(float(grad.norm()), 0.01 * largest)
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


def output_and_gradients(model, *args, **kwargs) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and every parameter's gradient under a fixed, position-dependent loss."""
    model.zero_grad()
    out = model(*args, **kwargs)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weights).sum().backward()
    # torch.compile's wrapper prefixes the names.
    grads = {
        name.removeprefix("_orig_mod."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return out.detach(), grads
