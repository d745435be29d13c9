"""docs/paper.md names functions and tests that exist, and the equations that the code says it implements."""

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from stages.settings.params import flat
from tests.datasets import REPOSITORY, committed_params

PAPER = REPOSITORY / "docs/paper.md"
EQUATIONS = range(1, 10)
SECTIONS = ("3", "4.1", "4.2.1", "4.2.2", "4.3", "4.4", "5.1", "5.4", "A.1", "A.2")
OTHER_PAPERS = ("stages/pretraining/",)  # whose docstrings number the equations of MoCo and SwAV
OPEN = "## Where the paper is silent or contradicts itself"  # its table has switches in place of code
Definition = ast.FunctionDef | ast.ClassDef


class Row(NamedTuple):
    """One row of a table."""

    paper: str
    functions: tuple[str, ...]  # stages/path.py:function or stages/path.py:Class.method
    tests: tuple[str, ...]


@functools.cache
def rows() -> list[Row]:
    found = []
    for line in PAPER.read_text(encoding="utf-8").partition(OPEN)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("paper", "topic", "---"):
            assert len(cells) == 4, line
            named = [tuple(re.findall(r"`([^`]+)`", cell)) for cell in cells[2:]]
            found.append(Row(cells[0], *named))
    return found


@functools.cache
def module(path: str) -> ast.Module:
    return ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))


def definition(name: str) -> Definition | None:
    """The function or method of a name as the table writes it."""
    path, _, places = name.partition(":")
    if not (REPOSITORY / path).is_file():
        return None
    found: ast.Module | Definition | None = module(path)
    for place in places.split("."):
        if found is None:
            return None
        named = (node for node in found.body if isinstance(node, Definition) and node.name == place)
        found = next(named, None)
    return found if isinstance(found, Definition) else None


def equations(text: str | None) -> set[int]:
    """Numbers in `Eq. 4`, `Eq. 1 to 3` and `Eq. 2, 6`; those of other papers follow a name and a comma."""
    numbers: set[int] = set()
    text = re.sub(r"\b[A-Z]\w+, Eq\.", "", " ".join((text or "").split()))
    for first, last, others in re.findall(r"\bEq\. (\d+)(?: to (\d+))?((?:, \d+)*)", text):
        numbers |= {*range(int(first), int(last or first) + 1), *map(int, re.findall(r"\d+", others))}
    return numbers


def docstrings(path: str) -> Iterator[str]:
    for node in ast.walk(module(path)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            yield ast.get_docstring(node) or ""


def test_there_are_rows() -> None:
    assert len(rows()) > 50
    assert all(row.functions and row.tests for row in rows())
    assert len(set(rows())) == len(rows())


def test_functions_exist() -> None:
    assert [name for row in rows() for name in row.functions if definition(name) is None] == []


def test_tests_exist() -> None:
    defined = {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert sorted({name for row in rows() for name in row.tests} - defined) == []


def test_every_equation_has_a_row() -> None:
    assert {number for row in rows() for number in equations(row.paper)} == set(EQUATIONS)


def test_every_section_has_a_row() -> None:
    named = " ".join(f"{row.paper} " for row in rows())
    assert [section for section in SECTIONS if f"{section} " not in named] == []


def test_the_code_of_an_equation_names_it() -> None:
    """In the docstring of a function of its row, or of that function's module."""
    for row in rows():
        written = [ast.get_docstring(found) for name in row.functions if (found := definition(name))]
        written += [ast.get_docstring(module(name.partition(":")[0])) for name in row.functions]
        in_code = set().union(*map(equations, written))
        assert equations(row.paper) <= in_code, row.paper


def test_equations_that_the_code_names_are_in_the_table() -> None:
    """With the file that names them."""
    files: dict[int, set[str]] = {number: set() for number in EQUATIONS}
    for row in rows():
        for number in equations(row.paper):
            files[number] |= {name.partition(":")[0] for name in row.functions}
    for path in sorted((REPOSITORY / "stages").rglob("*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        if not name.startswith(OTHER_PAPERS):
            for number in set().union(*map(equations, docstrings(name))):
                assert name in files.get(number, ()), f"{name} names Eq. {number}, docs/paper.md does not"


def test_each_open_question_has_a_switch() -> None:
    lines = PAPER.read_text(encoding="utf-8").partition(OPEN)[2].splitlines()
    switches = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    assert len(switches) >= 12
    settings = set(dict(flat(committed_params())))
    for question, _, _, switch in switches:
        named = re.findall(r"`([^`]+)`", switch)
        assert named, question
        for name in named:
            is_preset = (REPOSITORY / f"presets/{name}.yaml").is_file()
            assert name in settings or is_preset or (REPOSITORY / name).is_file(), f"{question}: {name}"


def test_how_equations_are_read() -> None:
    assert equations("a (Eq. 1 to 3), b (Eq. 4), c (Eq. 6, 8)") == {1, 2, 3, 4, 6, 8}
    assert equations("(MoCo, Eq. 1), (SwAV, Eq. 3 to 5), Equation 7") == set()
