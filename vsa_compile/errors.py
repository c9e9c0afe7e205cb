"""Error and warning texts that users see. Each says what came, what is allowed, and the way out.

Reasons for staying dense are in convert/refusals.py, what is said of gates in training/texts.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class VsaError(ValueError):
    """Base of all errors that vsa_compile raises on purpose; they pass through compiled calls unwrapped."""


class OptionError(VsaError):
    """A backend option that is unknown or has an impossible value."""


class ArgumentError(VsaError):
    """An argument that cannot be honoured, of `vsa_compile.attention` or another function."""


class RefusedError(VsaError):
    """An attention call was refused under `fallback="error"`, or its graph could not be converted."""


class StateError(VsaError):
    """Conflicting or unknown run-time state (`dense`, `video_grid`, `denoising`, a schedule)."""


class DoubleBackwardError(VsaError, RuntimeError):
    """A second derivative of the sparse kernel was asked for."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """ "unknown option 'sparsty'; did you mean 'sparsity'? Known: ..."."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {kind} {name!r}{guess} Known: {', '.join(known)}."


def bad_value(name: str, got: object, allowed: str, way_out: str = "") -> str:
    """One sentence: the name, what came, what is allowed, and the way out."""
    return f"{name} is {got!r}, but it must be {allowed}." + (f" {way_out}" if way_out else "")


def grid_mismatch(grid: tuple, video_start: int, tokens: int, what: str) -> str:
    frames, rows, cols = grid
    return (
        f"grid {frames}x{rows}x{cols} needs {frames * rows * cols} video tokens from position "
        f"{video_start}, but {what} has {tokens} tokens in all. Pass the grid in tokens (latent "
        "frames, rows and cols after patchify), not in pixels, and video_start= the number of "
        "tokens in front of the video."
    )


def not_a_tensor(name: str, got: object, allowed: str) -> str:
    return f"{name} is of type {type(got).__name__}, but it must be a torch.Tensor, {allowed}."


def differ(what: str, came: str) -> str:
    return f"{what}s differ: {came}. They must be the same; call .to() on the odd one."


def shapes_misfit(shapes: str, allowed: str) -> str:
    return f"shapes do not fit: {shapes}. {allowed}"


def bad_list(at: str, listed: Sequence[int], count: int, total: int) -> str:
    shown = ", ".join(map(str, listed[:12])) + (", ..." if len(listed) > 12 else "")
    return (
        f"the list of key tiles of (batch, head, query tile) {at} is [{shown}] with count {count}, but its "
        f"first count ids must be ascending, without repetition, from 0 to {total - 1}, and count from 0 to "
        "its width. torch.ops.vsa_compile.select makes such lists."
    )


def kv_alike() -> str:
    return "k and v must have the same batch, heads and tokens; .expand() the one that is shared."


def same_width() -> str:
    return (
        "q, k and v must have the same width. Pad the narrower with zeros (values: cut the output again) and "
        "pass scale=, or call scaled_dot_product_attention, which is dense."
    )


def same_batch(batch: int) -> str:
    return (
        f"q, k and v must have the same batch; nothing is broadcast. Call .expand({batch}, -1, -1, -1) on "
        "what is shared: it copies nothing."
    )


def grouped_heads() -> str:
    return (
        "The heads of k and v must divide those of q (grouped-query attention). Repeat the heads of k and v "
        "with .repeat_interleave(n, dim=1) until they do."
    )


def distributed() -> str:
    return (
        "q, k or v is a DTensor, but the sparse operator has no sharding rule. Call it on .to_local() where "
        "each rank holds all tokens of its batches or heads, or on .full_tensor(). Or pass sparsity=0 and no "
        "gate, which is dense SDPA."
    )


def no_func_transform(name: str) -> str:
    return (
        f"the sparse attention kernel has no rule for {name}. Differentiate with .backward() or "
        "torch.autograd.grad, or pass sparsity=0, which is dense SDPA."
    )


def double_backward() -> str:
    return (
        "the sparse attention kernel has no second derivative. Call backward without "
        'create_graph=True, or run this model with options={"sparsity": 0}, which is dense SDPA.'
    )


def no_coarse_output() -> str:
    return (
        "gate is given, but this method has no coarse output to multiply it with. Drop the gate, or use "
        'method="vsa", or give a method of your own residual=GatedCoarse().'
    )


def centre_not_kept() -> str:
    return (
        'dropped="centre" gives a dropped query the output of its window\'s centre, which keep_centre=False '
        'drops. Use dropped="zero", or keep the centre.'
    )


def needs_scores(rule: str) -> str:
    return f"the rule {rule} ranks scores, but the method has scorer=None. Give it scorer=MeanDot()."


def another_digest(name: str) -> str:
    return (
        f"this graph was made with another version of the method {name!r} than the one that is registered "
        "now. Compile or export it again, or register the version that it was made with."
    )


def name_taken(name: str) -> str:
    return f"{name!r} is a method of vsa_compile's own. Register yours under another name."


def method_replaced(name: str) -> str:
    return (
        f"the method {name!r} is replaced by another of that name, or by an edited one: calls that were "
        "compiled with it are compiled again."
    )


def unreadable_source(name: str) -> str:
    return (
        f"the source of method {name!r}, or of a value it uses, cannot be read: compiled code that uses it "
        "is not found in caches. Define it in a file, of plain values, to have it cached."
    )


def refused_but_required(name: str, reason: str) -> str:
    return (
        f'{name or "an attention call"} stays dense: {reason}. options={{"fallback": "error"}} turns '
        'that into this error; drop the option or set it to "dense" to let the call stay dense.'
    )


def conversion_failed(error: Exception) -> str:
    return (
        f"the conversion of a graph failed ({type(error).__name__}: {error}), and all its attention stays "
        "dense. This is a defect of vsa_compile; please report it with the traceback that is logged. The "
        "model itself is not affected."
    )


def not_prepared(model: str) -> str:
    way_out = "Call vsa_compile.prepare(model) first: it learns the grid."
    return bad_value("model", model, "a prepared model", way_out)


def options_twice() -> str:
    return (
        "options are given to vsa.with_options(...) and to torch.compile as well. Give all of them to one of "
        "the two."
    )


def schedule_in_export() -> str:
    return (
        "sparsity is a SparsitySchedule, but an exported program runs in processes that do not have it. Pass "
        "a number, such as schedule.sparsity for the current step's."
    )


def grid_versions(limit: int, grids: int) -> str:
    return (
        f"this code is compiled for the {limit}th time, {grids} of the times for grids that video_grid or "
        f"prepare hinted, and torch._dynamo.config.recompile_limit = {limit} allows no further version: at "
        "another grid it runs uncompiled, and dense. Set torch._dynamo.config.recompile_limit to more than "
        "the number of your grids."
    )


def state_conflict(name: str, wanted: object, held: object) -> str:
    return (
        f"{name} is requested as {wanted!r} here, but another thread or task has it at {held!r}, and it is "
        "one value for all threads of a process. Let them take turns, or run them as processes."
    )


def forward_unknown(name: str) -> str:
    return (
        f"{name} was changed by one thread while another ran a forward that is now computed again "
        "(activation checkpointing), or several ran such forwards, so that it is unknown what that forward "
        "saw. Change it, and run a backward, in the thread of the forward, between backward and forward."
    )


def callback_never_came(steps: int) -> str:
    return (
        f"denoising({steps}) was never told of the end of a step, and took all for the first one. Pass the "
        "callback that it gives: pipe(..., callback_on_step_end=on_step_end), or call it after every step."
    )


def never_sparse(steps: int, came: int) -> str:
    return (
        f"denoising({steps}, ...) ran dense from first to last: its loop had {came} steps, none of which is "
        "in the sparse range. Give the number of steps of the loop, and fewer dense_steps than that."
    )


def loop_ended_early(steps: int) -> str:
    text = f"denoising({steps}) took the first step of a loop for a later one, dense or not: one before "
    return text + "ended early, or its callback left steps out. Enter denoising anew for each loop."


def another_number_of_steps(steps: int, came: int) -> str:
    return (
        f"denoising({steps}) ran around a loop of {came} steps: start and end are fractions of {steps}. "
        "Give both the same number."
    )


def captured_in_vain(model: str, why: str) -> str:
    return (
        f"Dynamo fails in {model} when it captures data-dependent sizes, as vsa_compile.prepare asks it "
        "to; the model runs without. Graphs may break there, and attention next to the breaks stays dense "
        f"(vsa_compile.explain shows it). Dynamo said: {why.strip().splitlines()[0] if why.strip() else why}"
    )


def sparse_for_good() -> str:
    return (
        "aot_compile drops guards: what it compiles now stays sparse, whatever vsa_compile.dense(), "
        "denoising and add_gates say later. Compile it once more within dense() for the dense steps."
    )


def no_triton() -> str:
    return (
        "triton is not installed, so that nothing can be compiled for a GPU. Run "
        "pip install 'vsa-compile[gpu]', or install torch for this GPU as pytorch.org says, which brings the "
        "triton that goes with it."
    )


# --- The command line ---------------------------------------------------------------------------------

FACTORY = (
    "module:factory, a callable of an importable module that returns "
    "(model, kwargs), (model, args) or (model, args, kwargs)"
)
FACTORY_EXAMPLE = "For example my_model:build, with my_model.py in the current directory."


def not_json(name: str, text: str, why: str) -> str:
    return bad_value(name, text, "a JSON object", f"({why}) For example '{{\"sparsity\": 0.9}}', in quotes.")


def no_module(name: str, folder: str) -> str:
    text = f"there is no module {name!r} in {folder} or in this Python's packages."
    if "/" in name or name.endswith(".py"):
        return f"{text} Write it as in an import: dots for slashes, and no .py."
    return f"{text} Install it, or run the command where it lies."


def no_attribute(path: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}?" if close else f"it must be {FACTORY}."
    return f"{path} has no {name!r}; {guess}"


def not_built(path: str, got: object) -> str:
    shown = type(got).__name__
    if isinstance(got, tuple):
        shown = f"({', '.join(type(item).__name__ for item in got)})"
    return (
        f"{path} returned {shown}, but it must return (model, kwargs dict), (model, args tuple) or "
        "(model, args tuple, kwargs dict), where the model is callable."
    )


GRIDS = "grids of tokens, frames x rows x cols, with commas between them, such as 32x32x32,21x45x80"
WIDTHS = "head widths from 1 to 256 with commas between them, such as 64,128"
DENSITIES = "shares of tiles above 0 and below 1 with commas between them, such as 0.125,0.25"


def no_cuda(torch_version: str) -> str:
    return (
        f"--device cuda needs a GPU, and torch {torch_version} finds none. Use --device cpu, or install a "
        "torch that is built for this machine's CUDA (python -m vsa_compile doctor says what it finds)."
    )


def not_written(name: str, folder: str, why: str) -> str:
    return f"{name} is {folder!r}, where nothing can be written ({why}). Give a folder of yours."


def no_such_variant(variable: str, named: str, offered: Iterable[str]) -> str:
    allowed = f"one of {', '.join(offered)} and aten on this processor"
    return bad_value(f"the environment variable {variable}", named, allowed, "Unset it to use the fastest.")
