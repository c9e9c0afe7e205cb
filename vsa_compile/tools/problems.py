"""Problems that doctor can find in an installation, each with its way out."""

from __future__ import annotations


def no_entry_point() -> str:
    return (
        'torch.compile(model, backend="vsa") does not find the backend: the package is importable but not '
        "installed. Run pip install in its folder, or pass backend=vsa_compile.vsa."
    )


def another_installation(value: str) -> str:
    return (
        f'backend="vsa" is {value} of another package than this vsa_compile. Uninstall one of the two '
        "(pip uninstall vsa-compile)."
    )


def no_cpp_kernel(why: str) -> str:
    return f"{why}. This processor could run the C++ kernel: install a C++ compiler (g++ or clang++)."


def unknown_templates(torch_version: str) -> str:
    return (
        f"Inductor's template interface of torch {torch_version} is unknown to vsa_compile. Use the version "
        "in its pyproject.toml."
    )


def templates_unused(why: str) -> str:
    return f"{why}. The GPU could run a template; please report this with TORCH_LOGS=+vsa_compile."


def test_failed(what: str, why: str) -> str:
    return (
        f"the test on {what} failed: {why}. Reinstall torch and vsa_compile, and please report it if that "
        'does not help; until then do not pass backend="vsa".'
    )
