"""What users are told of gates that cannot be attached, loaded or trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def no_gate_site(why: Sequence[str]) -> str:
    none = "none is sparse with these inputs and options. vsa_compile.explain(model, ...) says why"
    return f"no attention call of this model can be given a gate: {'; '.join(why) or none}."


def gates_left_out(why: Sequence[str]) -> str:
    return f"sparse attention calls stay without a gate: {'; '.join(why)}."


def no_projection() -> str:
    return (
        "its queries come from no layer, or from several, in its graph. Make them with one torch.nn.Linear, "
        "or pass gate= to vsa_compile.attention"
    )


def projection_not_called() -> str:
    return (
        "the layer of its queries is not called, so that its hooks never run. Write q = self.to_q(x) with a "
        "torch.nn.Linear, instead of F.linear(x, self.to_q.weight) or self.to_q.forward(x)"
    )


def projection_not_plain() -> str:
    return (
        "the layer of its queries does not take its hidden states as the one tensor of their size and return "
        "one tensor of the same tokens, so that a gate cannot tell what to multiply. Write q = self.to_q(x) "
        "with a torch.nn.Linear, or with a layer that is called as one, or pass gate= to "
        "vsa_compile.attention"
    )


def gates_dropped(came: Iterable[str], known: Iterable[str]) -> str:
    return (
        f"the checkpoint holds gates that the model has no gate for: {', '.join(came)}. The model has "
        f"{', '.join(known) or 'none'}. Call vsa_compile.add_gates(model, ...) with inputs and options under "
        "which these calls are sparse, or rename the keys."
    )


def gates_untrained(count: int) -> str:
    return (
        f"{count} gates have gradients, but no optimizer has them: it was made before add_gates. Make it "
        "afterwards, or pass what add_gates returned to optimizer.add_param_group({'params': ...}); or call "
        ".requires_grad_(False) on gates that are not to learn."
    )
