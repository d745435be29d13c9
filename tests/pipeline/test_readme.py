"""README.md says what is there: stages, files, commands and settings."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.datasets import REPOSITORY
from tests.pipeline.pipeline_file import read_stages

README = REPOSITORY / "README.md"
TOP_LEVEL = ("stages", "data", "models", "metrics", "presets", "docs", "tests", ".ci")


@pytest.fixture(scope="module")
def text() -> str:
    assert README.exists(), "there is no README.md"
    return README.read_text(encoding="utf-8")


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


def test_links_lead_somewhere(text: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        if path:
            assert _exists_or_is_made(path), f"README.md links to {target}"
        else:
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"README.md links to {target}"


def test_files_that_are_named_exist(text: str) -> None:
    tops = "|".join(re.escape(name) for name in TOP_LEVEL)
    named = re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./@-]*\w)", text)
    named += re.findall(r"`([\w.-]+\.(?:yaml|toml|txt|md|lock))`", text)
    local = ("classes.txt", "train.txt", "val.txt")  # of a user's data set
    for path in named:
        assert path in local or _exists_or_is_made(path), f"README.md names {path}"
    assert named


def test_commands_exist(text: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README.md names `make {target}`"
    modules = set(re.findall(r"python -m (stages[\w.]+\w)", text))
    for module in modules:
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).exists(), f"README.md names {module}"
    folders = {"preset": "presets", "table": "presets/tables"}
    for target, name in set(re.findall(r"make (preset|table) NAME=([a-z0-9_]+)", text)):
        assert (REPOSITORY / folders[target] / f"{name}.yaml").exists(), f"README.md names {target} {name}"


def test_settings_exist(text: str) -> None:
    named = re.findall(r"(?:-S|--set-param|--set) '?([\w.]+)=", text)
    assert named
    # `--set base=NAME` of `make table` names a file of presets/bases/.
    assert [key for key in named if key != "base" and not _is_setting(key)] == []
    bases = re.findall(r"(?:--set base|BASE)=(\w+)", text)
    assert bases
    assert [base for base in bases if not (REPOSITORY / f"presets/bases/{base}.yaml").is_file()] == []


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


def test_the_table_of_costs_is_that_of_dvc_yaml(text: str) -> None:
    table = text.partition("| change | runs again |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert len(rows) >= 10
    for changes, cost in rows:
        for changed in re.findall(r"`([^`]+)`", changes):
            assert (REPOSITORY / changed).exists() or _is_setting(changed), changed
            assert _named_stages(cost) == _runs_again(changed), changed


def _is_setting(key: str) -> bool:
    section = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True
