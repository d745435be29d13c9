"""README.md and docs/ say what is there: stages, files, commands and settings."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import REPOSITORY, committed_params
from tests.pipeline.pipeline_file import read_stages

README = REPOSITORY / "README.md"
# Files of a user's data set, and what tools write beside them.
LOCAL = ("classes.txt", "train.txt", "val.txt", "model.md")
COPIED = "models/previous"  # made by `make pin WARM=1`
TOP_LEVEL = ("stages", "data", "models", "metrics", "presets", "docs", "tests", ".ci")


PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


@pytest.fixture(params=PAGES, ids=[page.name for page in PAGES])
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def _outputs() -> set[str]:
    return {path for stage in read_stages().values() for path in (*stage.outs, *stage.uncached)}


def _exists_or_is_made(path: str) -> bool:
    made = any(path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in _outputs())
    return made or (REPOSITORY / path).exists()


def test_the_table_of_stages_is_that_of_dvc_yaml(text: str) -> None:
    rows = re.findall(r"^\| *`([a-z_]+)` *\|", text, re.MULTILINE)
    stems = list(dict.fromkeys(stage.stem for stage in read_stages().values()))
    named = [row for row in rows if row in stems or (REPOSITORY / f"stages/{row}.py").exists()]
    assert named == stems


def test_the_table_of_stages_names_their_outputs(text: str) -> None:
    for stage in read_stages().values():
        (row,) = re.findall(rf"^\| *`{stage.stem}` *\|.*$", text, re.MULTILINE)
        for path in stage.outs:
            assert path in row, f"the row of {stage.stem} does not name {path}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        inside = linked.relative_to(REPOSITORY.resolve()) if path else page
        assert not path or _exists_or_is_made(str(inside)), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(linked), f"{page.name} links to {target}"


def test_every_page_can_be_reached_from_the_readme(text: str) -> None:
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []


def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tops = "|".join(re.escape(name) for name in TOP_LEVEL)
    named = re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./@-]*\w)", text)
    named += [
        name for name in re.findall(r"`([\w.-]+\.(?:yaml|toml|txt|md|lock))`", text) if name not in LOCAL
    ]
    missing = [path for path in named if not _exists_or_is_made(path) and not path.startswith(COPIED)]
    assert missing == [], page.name


def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} names `make {target}`"
    for module in set(re.findall(r"python -m ((?:stages|tests)[\w.]*\w)", text)):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: {module}"
    folders = {"preset": "presets", "table": "presets/tables"}
    for target, name in set(re.findall(r"make (preset|table) NAME=([a-z0-9_]+)", text)):
        assert (REPOSITORY / folders[target] / f"{name}.yaml").exists(), f"{page.name}: {target} {name}"


def test_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:-S|--set-param|--set) '?(?:[\d,]+:)?([\w.]+)=", text)
    # `--set base=NAME` of `make table` names a file of presets/bases/.
    assert [key for key in named if key != "base" and not _is_setting(key)] == []
    bases = re.findall(r"(?:--set base|BASE)=(\w+)", text)
    assert [base for base in bases if not (REPOSITORY / f"presets/bases/{base}.yaml").is_file()] == []


def test_the_pages_name_commands_and_settings_at_all() -> None:
    whole = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for pattern in (r"make [a-z]+", r"python -m stages\.", r"-S [\w.]+=", r"--set base=", r"\]\(\w+\.md\)"):
        assert re.search(pattern, whole), pattern


def test_lines_of_the_pages_are_not_too_long(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 130 and not line.startswith("|")] == []


def test_no_place_is_left_to_be_filled(text: str) -> None:
    left = re.findall(r"\b(?:TODO|FIXME|XXX|TBD)\b|^[A-Z]+(?:_[A-Z]+)+$", text, re.MULTILINE)
    assert left == []
    assert Path(README).stat().st_size > 2000


# Outputs of `prepare` that keep their bytes when the setting changes, so DVC runs nothing for them.
KEPT = {"size_px": {"data/images/train"}, "prepare.demo.num_val": {"data/images/train"}}


def _runs_again(changed: str) -> set[str]:
    """Stages that depend on a setting or a file, by dvc.yaml, and all that depend on their outputs."""
    stale = {changed}
    again: set[str] = set()
    for stage in read_stages().values():  # in the order of the flow
        keys = [key for key in stage.params if changed == key or changed.startswith(f"{key}.")]
        deps = (*stage.data_deps, *stage.code_deps())
        if keys or any(_overlap(path, dep) for path in stale for dep in deps):
            again.add(stage.stem)
            stale |= {*stage.outs, *stage.uncached} - KEPT.get(changed, set())
    return again


def _overlap(path: str, other: str) -> bool:
    """Whether two paths are the same, or one is a folder that contains the other."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _named_stages(cost: str) -> set[str]:
    """The stages that a cell of the table of costs names."""
    stems = list(dict.fromkeys(stage.stem for stage in read_stages().values()))
    named = re.findall(r"`([^`]+)`", cost)
    assert set(named) <= set(stems), cost
    if cost.startswith("all stages"):
        return set(stems) - set(named)
    if cost.endswith("and all later stages"):
        return set(stems[stems.index(named[0]) :])
    assert named or cost == "nothing"
    return set(named)


def test_the_table_of_costs_is_that_of_dvc_yaml() -> None:
    text = (REPOSITORY / "docs/changes.md").read_text(encoding="utf-8")
    table = text.partition("| change | runs again |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert len(rows) >= 10
    for changes, cost in rows:
        for changed in re.findall(r"`([^`]+)`", changes):
            assert (REPOSITORY / changed).exists() or _is_setting(changed), changed
            assert _named_stages(cost) == _runs_again(changed), changed


def _is_setting(key: str) -> bool:
    section: Any = committed_params()
    for part in key.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True
