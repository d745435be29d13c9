"""dvc.yaml against the code: DVC follows no import, so tests hold what a stage names against what it runs."""

import ast
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.datasets import REPOSITORY
from tests.pipeline.pipeline_file import (
    NEUTRAL_KEYS,
    NEUTRAL_ROOMS,
    READER,
    READERS,
    Stage,
    closure,
    files_below,
    imports,
    read_stages,
)

STAGES = read_stages()
MODULES = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "stages").rglob("*.py"))
SCRIPTS = {path for path in MODULES if path.count("/") == 1 and not path.endswith("__init__.py")}
TOOLS = {path for path in MODULES if path.startswith("stages/tools/")}
MOST_LINES, MOST_LINES_OF_FUNCTION = 250, 60

# What each room may import beside settings, core and runtime, which serve all.
SERVE_ALL = {"core": {"settings"}, "runtime": {"core", "settings"}, "settings": set()}
ROOMS: dict[str, set[str]] = {
    "imaging": set(),
    "clustering": set(),
    "backbone": set(),
    "postprocessing": set(),
    "dataset": set(),
    "reporting": set(),
    "segmenter": {"backbone", "imaging"},
    "checkpoints": {"backbone"},
    "pseudo_labels": {"clustering"},
    "readers": {"dataset"},
    "final_clusters": {"segmenter", "clustering", "imaging"},
    "prediction": {"segmenter"},
    "scoring": {"clustering"},
    "pretraining": {"checkpoints", "backbone", "imaging"},
    "training": {"segmenter", "clustering", "backbone", "imaging"},
}
# Modules of the room of one stage that others may use.
DOORS = {
    "stages/pseudo_labels/pyramid.py",
    "stages/postprocessing/score_maps.py",
    "stages/dataset/truth.py",
}
# What dependencies cover and the stage does not import. An edit there runs the stage for nothing, so a new
# entry needs a reason. `prepare` is listed for each of its readers.
NOT_IMPORTED = {
    "prepare cityscapes": "core/seeds dataset/label_map_folders",
    "prepare cocostuff": "core/seeds dataset/label_map_folders dataset/listing dataset/own_outputs",
    "prepare demo": "dataset/label_map_folders dataset/listing dataset/own_outputs",
    "prepare folder": "core/seeds",
    "embed": "backbone/batch_norm core/graph core/hashes core/history core/optimizer_state core/repository "
    "core/step imaging/photometric",
    "label": "core/distributed core/graph core/hashes core/history core/images core/launched "
    "core/optimizer_state core/repository core/step pseudo_labels/pyramid",
    "select_views": "clustering/agreement clustering/kmeans clustering/lloyd core/device "
    "core/distributed core/graph "
    "core/hashes core/history core/images core/launched core/memory core/optimizer_state "
    "core/repository core/seeds core/step core/transfer",
    "train": "clustering/agreement",
    "cluster": "core/graph core/history core/optimizer_state core/step imaging/photometric",
    "predict": "backbone/batch_norm core/graph core/history core/optimizer_state core/step "
    "imaging/photometric",
    "refine": "core/distributed core/graph core/hashes core/history core/launched core/optimizer_state "
    "core/repository core/step core/tensors core/transfer",
    "evaluate@raw": "clustering/agreement core/device core/distributed core/graph core/hashes core/history "
    "core/launched core/memory core/optimizer_state core/repository core/step core/tensors",
    "evaluate@refined": "clustering/agreement core/device core/distributed core/graph core/hashes "
    "core/history "
    "core/launched core/memory core/optimizer_state core/repository core/step core/tensors",
    "report": "core/device core/distributed core/graph core/history core/launched core/memory "
    "core/optimizer_state core/repository core/seeds core/step core/transfer",
}

# Files at the top that people write, and stages read.
GIVEN = {"names.yaml"}


@pytest.fixture(params=STAGES.values(), ids=list(STAGES))
def stage(request: pytest.FixtureRequest) -> Stage:
    return request.param


def _room(path: str) -> str | None:
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 else None


def _tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository, so nothing says what is tracked")
    return set(listed.stdout.splitlines())


# What a stage names


@pytest.mark.parametrize("reader", READERS)
def test_code_that_runs_lies_under_the_dependencies(stage: Stage, reader: str) -> None:
    missing = sorted(stage.needed(reader) - stage.covered(reader))
    assert not missing, f"stage {stage.name} of dvc.yaml does not name what it runs: {', '.join(missing)}"


def test_every_dependency_is_used(stage: Stage) -> None:
    needed = set().union(*(stage.needed(reader) for reader in READERS))
    for dep in stage.code_deps():
        assert needed & set(files_below(dep)), f"{stage.name}: nothing in {dep} is imported"


def test_what_rooms_cover_beside_what_runs() -> None:
    found = {}
    for stage in STAGES.values():
        for reader in READERS if stage.stem == "prepare" else ("demo",):
            spare = stage.covered(reader) - stage.needed(reader)
            names = (path[len("stages/") : -len(".py")] for path in sorted(spare) if path.endswith(".py"))
            if listed := " ".join(names):
                found[f"{stage.name} {reader}" if stage.stem == "prepare" else stage.name] = listed
    assert found == NOT_IMPORTED


def test_every_dependency_is_named_once_and_is_code_or_an_output(stage: Stage) -> None:
    assert len(set(stage.deps)) == len(stage.deps)
    made = {path for other in STAGES.values() for path in (*other.outs, *other.uncached)}
    folders = {str(Path(path).parent) for path in made}
    for path in stage.data_deps:
        assert path in made | folders | GIVEN, f"{stage.name}: nothing makes {path}"
    for path in stage.code_deps():
        assert (REPOSITORY / path).exists(), f"{stage.name}: there is no {path}"


def test_given_files_are_there() -> None:
    assert _tracked() >= GIVEN


def test_only_prepare_depends_on_a_setting() -> None:
    assert [stage.name for stage in STAGES.values() if READER in "".join(stage.deps)] == ["prepare"]


def test_every_path_that_it_reads_or_writes_is_a_flag_of_its_command(stage: Stage) -> None:
    words = stage.cmd.split()
    assert words[:3] == ["python", "-m", f"stages.{stage.stem}"]
    flags = set(words[3:])
    for path in (*stage.data_deps, *stage.outs, *stage.uncached):
        assert path in flags, f"{stage.name}: {path} is not in its command"
    named = {*stage.data_deps, *stage.outs, *stage.uncached}
    for word in flags:
        if word.startswith(("data/", "models/", "metrics/")):
            assert word in named, f"{stage.name}: {word} of its command is neither dependency nor output"


def _loaded_keys(script: str) -> set[str]:
    """Keys of params.yaml that a script asks for: the arguments of each `load(...)`, `*KEYS` among them."""
    tree = ast.parse((REPOSITORY / script).read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: [element.value for element in node.value.elts]
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Tuple)
        and all(isinstance(element, ast.Constant) for element in node.value.elts)
    }
    keys: set[str] = set()
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load"
    ]
    assert calls, f"{script} reads no params"
    for call in calls:
        for argument in call.args[1:]:
            if isinstance(argument, ast.Starred):
                assert isinstance(argument.value, ast.Name)
                keys.update(constants[argument.value.id])
            else:
                assert isinstance(argument, ast.Constant), f"{script}: a key that is not written out"
                keys.add(argument.value)
    return keys


def test_params_that_are_named_are_those_that_are_read(stage: Stage) -> None:
    assert set(stage.params) == _loaded_keys(stage.script) - set(NEUTRAL_KEYS)
    top_level = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert set(stage.params) <= set(top_level)


@pytest.mark.parametrize("key", NEUTRAL_KEYS)
def test_neutral_settings_are_named_by_no_stage(key: str) -> None:
    assert [stage.name for stage in STAGES.values() if key in stage.params] == []


def test_only_the_scoring_and_the_report_see_the_truth() -> None:
    truth = {stage.name for stage in STAGES.values() if "data/truth" in stage.deps}
    assert truth == {"evaluate@raw", "evaluate@refined", "report"}
    assert not [path for stage in STAGES.values() for path in stage.deps if path.startswith("data/truth/")]
    readers = {stage.name for stage in STAGES.values() if "stages/dataset/truth.py" in closure(stage.script)}
    assert readers == truth | {"prepare"}


def test_the_flow_has_an_order() -> None:
    made = set(GIVEN)
    for stage in STAGES.values():
        missing = set(stage.data_deps) - made - {str(Path(path).parent) for path in made}
        assert not missing, f"{stage.name} reads {missing} before it is made"
        made |= {*stage.outs, *stage.uncached}


# What DVC keeps


def test_no_stage_keeps_half_done_outputs(stage: Stage) -> None:
    for kind in ("outs", "metrics", "plots"):
        for out in stage.entry.get(kind, []):
            options = next(iter(out.values())) if isinstance(out, dict) else {}
            assert "persist" not in options, f"{stage.name}: {out}"
            if kind == "outs":
                assert options.get("cache", True), f"{stage.name}: {out} would be lost"


def test_large_outputs_are_kept_by_dvc_and_small_ones_by_git() -> None:
    tracked = _tracked()
    for stage in STAGES.values():
        for path in stage.outs:
            assert not [file for file in tracked if file == path or file.startswith(f"{path}/")], path
            ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY, check=False)
            assert ignored.returncode == 0, f"git does not ignore {path}"
        for path in stage.uncached:
            ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY, check=False)
            assert ignored.returncode == 1, f"git ignores {path}, so no commit would show it"


def test_git_leaves_photographs_and_checkpoints_of_the_user_alone() -> None:
    """`git add -A`, as after the download of a ZIP file, would commit them."""
    for path in ("photos/a/1.jpg", "dino_resnet50_pretrain.pth", "weights/moco.pth.tar", "weights/swav.pt"):
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY, check=False)
        assert ignored.returncode == 0, f"git does not ignore {path}"
    lists = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    listed = subprocess.run(lists, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert listed.stdout == "", "git tracks what it ignores"


def test_dvc_lock_speaks_of_the_same_stages() -> None:
    lock = REPOSITORY / "dvc.lock"
    if not lock.exists():
        pytest.skip("dvc.lock does not exist yet: `dvc repro` has never run here")
    locked = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    assert sorted(locked) == sorted(STAGES)
    for name, stage in STAGES.items():
        entry = locked[name]
        assert " ".join(entry["cmd"].split()) == stage.cmd, name
        assert {dep["path"] for dep in entry["deps"]} == {*stage.data_deps, *stage.code_deps()}, name
        assert {out["path"] for out in entry["outs"]} == {*stage.outs, *stage.uncached}, name
        assert set(entry["params"]["params.yaml"]) == set(stage.params), name


def test_dvc_lock_knows_every_key_of_params_yaml() -> None:
    """A key that is new to a section makes its stages run again, so dvc.lock has to be of a run with it."""
    lock = REPOSITORY / "dvc.lock"
    if not lock.exists():
        pytest.skip("dvc.lock does not exist yet: `dvc repro` has never run here")
    locked = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    params = YAML(typ="safe", pure=True).load((REPOSITORY / "presets/demo.yaml").read_text(encoding="utf-8"))

    def keys(value: object) -> object:
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None

    for name, entry in locked.items():
        for section, values in entry["params"]["params.yaml"].items():
            assert keys(values) == keys(params[section]), f"{name}: {section}; run `dvc repro` and commit"


# The laws of the package


def test_every_room_has_its_law() -> None:
    assert {room for path in MODULES if (room := _room(path))} == {*ROOMS, *SERVE_ALL, "tools"}


@pytest.mark.parametrize("path", MODULES)
def test_imports_go_the_allowed_ways(path: str) -> None:
    room = _room(path)
    for imported in sorted(imports(path)):
        other = _room(imported)
        assert imported not in SCRIPTS, f"{path} imports the script {imported}"
        if room == "tools" or other == room:
            continue
        assert imported not in TOOLS, f"{path} imports the tool {imported}"
        if room is None or imported in DOORS:
            continue
        allowed = SERVE_ALL[room] if room in SERVE_ALL else ROOMS[room] | set(SERVE_ALL)
        assert other in allowed, f"{path} imports {imported}; room {room} may use {sorted(allowed)}"


def test_the_room_of_one_stage_has_no_other_doors() -> None:
    """Rooms that one stage alone names: what others use of them is a door, named by itself in dvc.yaml."""
    named: dict[str, set[str]] = {}
    for stage in STAGES.values():
        for room in ROOMS:
            if any(dep.startswith(f"stages/{room}") and dep not in DOORS for dep in stage.code_deps()):
                named.setdefault(room, set()).add(stage.stem)
    shared = {room for room, stems in named.items() if len(stems) > 1}
    assert shared == {"imaging", "backbone", "clustering", "segmenter"}
    for stage in STAGES.values():
        for path in stage.needed():
            room = _room(path)
            if room in named and room not in shared and stage.stem not in named[room]:
                assert path in DOORS, f"{stage.name} runs {path}, but names only doors of that room"


def test_label_maps_go_through_one_door() -> None:
    users = {_room(path) or Path(path).stem for path in MODULES if "stages/dataset/truth.py" in imports(path)}
    assert users - {"tools"} == {
        "prepare",
        "dataset",
        "readers",
        "evaluate",
        "scoring",
        "reporting",
    }


def test_folders_have_no_code_of_their_own() -> None:
    assert [path for path in MODULES if path.endswith("__init__.py")] == ["stages/__init__.py"]
    body = ast.parse((REPOSITORY / "stages/__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert _is_docstring(body[0])


def test_every_module_is_reached_from_a_script_or_a_tool() -> None:
    readers = {f"stages/readers/{name}/{name}.py" for name in READERS}
    reached = set().union(*(closure(path) for path in SCRIPTS | TOOLS | readers))
    assert set(MODULES) - reached == {"stages/__init__.py"}
    assert {room for room in NEUTRAL_ROOMS if any(path.startswith(room) for path in reached)} == set(
        NEUTRAL_ROOMS
    )


def test_no_two_files_have_one_name() -> None:
    stems = [Path(path).stem for path in MODULES if _room(path) is not None or path in SCRIPTS]
    assert sorted(stems) == sorted(set(stems))


@pytest.mark.parametrize("path", MODULES)
def test_files_and_functions_fit_on_a_few_pages(path: str) -> None:
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = int(node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_FUNCTION, f"{node.name} has {lines} lines"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


DEFINES = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)


@pytest.mark.parametrize("path", MODULES)
def test_importing_a_module_only_defines(path: str) -> None:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    for node in tree.body:
        assert isinstance(node, DEFINES) or _is_main_guard(node) or _is_docstring(node), (
            f"{path}:{node.lineno}: {ast.unparse(node).splitlines()[0]} runs when the module is imported"
        )
    if path in SCRIPTS:
        guards = [node for node in tree.body if _is_main_guard(node)]
        assert [ast.unparse(guard.body[0]) for guard in guards] == ["run(main)"], path


def test_stages_are_the_scripts_in_the_order_of_the_flow() -> None:
    stems = list(dict.fromkeys(stage.stem for stage in STAGES.values()))
    assert {f"stages/{stem}.py" for stem in stems} <= SCRIPTS
    docstring = ast.get_docstring(ast.parse((REPOSITORY / "stages/__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    places = [docstring.index(f"\n{stem} ") for stem in stems]
    assert all(first < second for first, second in pairwise(places)), "stages/__init__.py tells another order"
