"""Every seeded fault still has its place in the sources. `make mutants` looks who notices it there."""

import shutil

import pytest
from mutants import MUTANTS
from mutation import ROOT, Mutant
from syntax import NoPlaceError, replaced

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_has_its_place(mutant: Mutant, tmp_path):
    path = mutant.file.partition("::")[0]
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.copy(ROOT / path, tmp_path / path)
    mutant.put_into(tmp_path)
    assert (tmp_path / path).read_text() != (ROOT / path).read_text()


def test_names_are_unique_and_cover_the_list():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert {name.split()[0] for name in names} >= {f"F{i}" for i in range(1, 31)}


PYTHON = '''
class Box:
    """width: é"""

    def area(self):
        if self.w > 0 and (self.h
                           > 0):  # a remark
            return self.w * self.h
        return scaled(self.w, by=0)

    def other(self):
        return self.w * self.h
'''


@pytest.mark.parametrize(
    ("right", "wrong", "left"),
    [
        ("self.h > 0", "True", "if self.w > 0 and ((True)):"),
        ("self.w*self.h", "0", "return (0)\n        return scaled"),
        ("return self.w * (self.h)", "", "            pass\n"),
        ("return self.w * self.h", "x = 1\nreturn x", "            x = 1\n            return x\n"),
        ("scaled(...)", "7 - 1", "return (7 - 1)"),
        ("scaled(self.w, ...)", "7", "return (7)"),
        ("if ...:\n    ...", "print()", "    def area(self):\n        print()\n        return scaled"),
        ("by=0", "by=1", "scaled(self.w, by=1)"),  # no tree of its own: tokens
    ],
)
def test_python_is_found_whatever_its_layout(right, wrong, left):
    assert left in replaced(PYTHON, right, wrong, language="python", within="Box.area")


CPP = """
struct Row {
  int64_t size() const { return  stop - start; }
};
inline int64_t longest(const Row& a,
                       const Row& b) {  // of two
  if (a.size() > b.size()) { return a.size(); }
  return b.size( );
}
void again(const Row& a) { longest(a, a); }
"""


@pytest.mark.parametrize(
    ("within", "right", "wrong", "left"),
    [
        ("Row.size", "stop-start", "stop", "{ return  stop; }"),
        ("longest", "return b . size()", "return 0", "  return 0;"),
        ("again", "longest(a,a)", "longest(a, {})", "{ longest(a, {}); }"),
    ],
)
def test_cpp_is_found_whatever_its_layout(within, right, wrong, left):
    assert left in replaced(CPP, right, wrong, language="c++", within=within)


def test_a_place_that_is_not_there_or_not_the_only_one_is_an_error():
    with pytest.raises(NoPlaceError, match="nowhere"):
        replaced(PYTHON, "self.d", "0", language="python", within="Box.area")
    with pytest.raises(NoPlaceError, match="0 definitions of 'volume'"):
        replaced(PYTHON, "self.w", "0", language="python", within="Box.volume")
    with pytest.raises(NoPlaceError, match=r"2 times \(lines 8, 12\); name a function or the nth"):
        replaced(PYTHON, "self.w * self.h", "0", language="python")
    assert replaced(PYTHON, "self.w * self.h", "0", language="python", nth=2).endswith("return (0)\n")
    with pytest.raises(NoPlaceError, match="0 definitions of 'shortest'"):
        replaced(CPP, "a", "b", language="c++", within="shortest")
