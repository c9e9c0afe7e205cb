"""Every seeded fault still applies to the sources. `make mutants` puts them in, and looks who notices."""

import pytest
from mutants import MUTANTS, ROOT, Mutant

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_has_its_place(mutant: Mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.right) == 1
    assert mutant.right != mutant.wrong


def test_names_are_unique_and_cover_the_list():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert {name.split()[0] for name in names} >= {f"F{i}" for i in range(1, 31)}
