"""How many cases hypothesis tries: few and the same ones in CI, many and new ones in `make fuzz`.

The profile "mutants" is CI's, without shrinking: who runs it knows what is wrong.
"""

import os

from hypothesis import HealthCheck, Phase, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
# How many times CI's number of cases "fuzz" tries.
SCALE = int(os.environ.get("HYPOTHESIS_SCALE", "20")) if PROFILE == "fuzz" else 1


def load() -> None:
    """Register the profiles, and use the one that HYPOTHESIS_PROFILE names."""
    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # explaining takes longer than these
    settings.register_profile("ci", max_examples=20, derandomize=True, phases=phases, **common)
    settings.register_profile("mutants", max_examples=25, derandomize=True, phases=phases[:3], **common)
    settings.register_profile("fuzz", max_examples=25 * SCALE, print_blob=True, phases=phases, **common)
    settings.load_profile(PROFILE)


def examples(count: int) -> settings:
    """A decorator: `count` cases in CI, SCALE times as many in `make fuzz`."""
    load()
    return settings(max_examples=count * SCALE)
