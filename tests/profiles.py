"""How many cases hypothesis tries: few and the same ones in CI, many and new ones in `make fuzz`.

The profile "mutants" is CI's, without shrinking: who runs it knows what is wrong.
"""

import os

from hypothesis import HealthCheck, Phase, settings

_SCALES = {"ci": 1, "mutants": 1, "fuzz": 20}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")


def load() -> None:
    """Register the profiles, and use the one that HYPOTHESIS_PROFILE names."""
    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # explaining takes longer than these
    settings.register_profile("ci", max_examples=25, derandomize=True, phases=phases, **common)
    settings.register_profile("mutants", max_examples=25, derandomize=True, phases=phases[:3], **common)
    settings.register_profile("fuzz", max_examples=500, print_blob=True, phases=phases, **common)
    settings.load_profile(PROFILE)


def examples(count: int) -> settings:
    """A decorator: `count` cases in CI, and as many times more in `make fuzz` as tests without it get."""
    load()
    return settings(max_examples=count * _SCALES[PROFILE])
