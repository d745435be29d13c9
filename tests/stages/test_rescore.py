"""`evaluate --confusion` through its command line: stored matrices in every form, and faulty ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import evaluate
from stages.core.artefacts import read_metrics
from stages.dataset.truth import write_classes
from stages.scoring.confusion import Counted
from stages.scoring.metrics import match_by_overlap
from stages.scoring.outputs import confusion_table, write_outputs
from stages.scoring.readings import Matched
from stages.settings.errors import UserError

NAMES = ("cow", "car", "sky", "grass")
KINDS = ("thing", "thing", "stuff", "stuff")
# By class and cluster; cluster 2 is class 0, cluster 0 class 1, cluster 3 class 2, cluster 1 class 3.
CONFUSION = np.array([[10, 0, 40, 50], [30, 60, 10, 0], [0, 10, 0, 90], [0, 170, 20, 10]])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path, NAMES, KINDS)
    return tmp_path


def _score(*argv: str) -> dict[str, float]:
    evaluate.main([*argv, "--metrics", "scores.json"])
    return read_metrics(Path("scores.json"))["confusion"]


def _fault(text: str | None, *more: str, path: str = "counts.csv") -> str:
    if text is not None:
        Path(path).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        evaluate.main(["--confusion", path, *more])
    return str(raised.value)


def _plain(matrix: np.ndarray, header: Sequence[str] = (), names: Sequence[str] = ()) -> str:
    lines = [",".join(map(str, line)) for line in matrix]
    if names:
        lines = [f"{name},{line}" for name, line in zip(names, lines, strict=True)]
    return "\n".join([",".join(header)] * bool(header) + lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        _plain(CONFUSION),
        _plain(CONFUSION.astype(float)),
        _plain(CONFUSION, header=["a", "b", "c", "d"]),
        _plain(CONFUSION, names=NAMES),
        _plain(CONFUSION, header=["", "0", "1", "2", "last"], names=NAMES),
        pd.DataFrame(CONFUSION).to_csv(),
        pd.DataFrame(CONFUSION, index=NAMES).to_csv(),
        "\ufeff" + _plain(CONFUSION).replace(",", " , ").replace("\n", "\r\n"),
        confusion_table(NAMES, CONFUSION, np.array([1, 3, 0, 2])).to_csv(index=False),
    ],
    ids=[
        "plain",
        "floats",
        "header",
        "names",
        "both",
        "numbered",
        "numbered columns",
        "byte order mark",
        "evaluate's own",
    ],
)
def test_every_form_is_read(folder: Path, text: str) -> None:
    Path("counts.csv").write_text(text, encoding="utf-8")
    figures = _score("--confusion", "counts.csv", "--classes", "classes.csv", "--readings", "readings.json")
    assert figures["accuracy"] == 0.66
    assert figures["clusters_used"] == 4
    things = read_metrics(Path("readings.json"))["confusion_readings"]["one_to_one"]["things"]
    assert things["legacy_picie"]["accuracy"] == pytest.approx(
        200 / 260, abs=1e-6
    )  # knows the ids of clusters
    assert things["own_matching"]["accuracy"] == 0.55


def test_arrays_and_turned_matrices(folder: Path) -> None:
    np.save("counts.npy", CONFUSION)
    np.save("turned.npy", CONFUSION.T.astype(np.float32))
    Path("turned.csv").write_text(_plain(CONFUSION.T, names=["w", "x", "y", "z"]))
    assert _score("--confusion", "counts.npy")["accuracy"] == 0.66
    assert _score("--confusion", "turned.npy", "--transposed", "--classes", "classes.csv") == _score(
        "--confusion", "counts.npy"
    )
    assert _score("--confusion", "turned.csv", "--transposed") == _score("--confusion", "counts.npy")


def test_scoring_what_was_written_gives_what_was_scored(folder: Path) -> None:
    rolled = np.roll(CONFUSION, 1, axis=1)
    for name, confusion in (("raw", CONFUSION), ("refined", rolled)):
        write_outputs(
            Matched(Counted(confusion, CONFUSION, NAMES, KINDS), match_by_overlap),
            name,
            readings=Path(f"{name}.json"),
            readings_table=Path(f"{name}_readings.csv"),
            per_class=Path(f"{name}_classes.csv"),
            confusion_table_path=Path(f"{name}_confusion.csv"),
        )
        argv = ["--name", name, "--confusion", f"{name}_confusion.csv", "--matched-on", "raw_confusion.csv"]
        argv += ["--classes", "classes.csv", "--readings", "again.json", "--readings-table", "again.csv"]
        evaluate.main([*argv, "--per-class", "classes_again.csv", "--confusion-table", "counts_again.csv"])
        for written, again in (
            (f"{name}.json", "again.json"),
            (f"{name}_readings.csv", "again.csv"),
            (f"{name}_classes.csv", "classes_again.csv"),
            (f"{name}_confusion.csv", "counts_again.csv"),
        ):
            assert Path(again).read_text() == Path(written).read_text()


def test_without_names_and_kinds_all_classes_are_scored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("counts.csv").write_text("5,1,0\n0,5,9\n")
    evaluate.main(["--confusion", "counts.csv", "--per-class", "classes_out.csv"])
    assert Path("classes_out.csv").read_text().startswith("class,cluster,iou,accuracy,pixels\nclass 0,0,")
    told = capsys.readouterr().out
    assert "confusion: 2 classes, 3 clusters, 20 labeled pixels" in told
    assert "many_to_one     all overall     95.00" in told
    assert sorted(path.name for path in folder.iterdir()) == ["classes.csv", "classes_out.csv", "counts.csv"]


OWN = "actual,predicted,cluster,pixels\n"
NAMED = "; remove it, or empty its first cell; if it is a class, put a line of names before it"
FAULTS = [
    ("", "counts.csv: is empty; expected a line of counts for each class"),
    ("a,b\n", "counts.csv: holds no counts; expected a line of counts for each class"),
    (
        "1,2\n3\n",
        "counts.csv: line 2 has 1 cells, but the first has 2; every class needs a count for every cluster, "
        "separated by commas",
    ),
    (
        "1,2\n3,x\n",
        "counts.csv: class 1, cluster 1: 'x'; expected a count of pixels: a whole number, 0 or more",
    ),
    (
        "1,-2\n0.5,nan\n",
        "counts.csv: class 0, cluster 1: '-2'; expected a count of pixels: a whole number, 0 or "
        "more; 2 more cells are invalid",
    ),
    (
        pd.DataFrame(CONFUSION).to_csv(index=False),
        "counts.csv: the first line looks like column numbers (0 to 3); remove it",
    ),
    (
        "0,0\n0,0\n",
        "counts.csv: holds 0 pixels; expected at least one and fewer than 9.0072e+15, the limit of "
        "exact counting",
    ),
    (
        "1,1e300\n",
        "counts.csv: holds 1e+300 pixels; expected at least one and fewer than 9.0072e+15, the limit of "
        "exact counting",
    ),
    (
        OWN,
        "counts.csv: has no rows; it was written without truth, so there is nothing to score",
    ),
    (
        OWN + "sky,sky,0,5\nsky,grass,0,5\n",
        "counts.csv: has two rows for class 'sky' and cluster '0'; each pair needs exactly one row, and "
        "each class a unique name",
    ),
    (
        OWN + "sky,sky,0,5\nsky,grass,1,5\ngrass,sky,0,1\n",
        "counts.csv: has 3 rows, but 2 classes and 2 clusters need 4, one for each pair",
    ),
    (
        OWN + "sky,sky,1,5\nsky,grass,2,5\n",
        "counts.csv: column 'cluster' must hold the ids 0 to 1, each once per class",
    ),
    (
        "actual,predicted,pixels\nsky,sky,5\n",
        "counts.csv: has no column 'cluster', which holds the cluster ids; recreate it with "
        "`dvc repro evaluate`",
    ),
    (
        "1,x\n3,4\n",
        "counts.csv: class 0, cluster 1: 'x'; expected a count of pixels: a whole number, 0 or more",
    ),
    ("id,0,1,2\ncow,5,6,7\n", "counts.csv: the first line looks like column numbers (0 to 2)" + NAMED),
    (
        "class,1,2,3\ncow,5,6,7\ncar,1,0,0\n",
        "counts.csv: the first line looks like column numbers (1 to 3)" + NAMED,
    ),
    (
        "class,0,1\ncow,5,6\ncar,1,0\n",
        "counts.csv: the first line looks like column numbers (0 to 1)" + NAMED,
    ),
    ("id,0,1\n0,5,6\n1,1,0\n", "counts.csv: the first line looks like column numbers (0 to 1)" + NAMED),
    ("class,0.0,1.0\ncow,5,6\n", "counts.csv: the first line looks like column numbers (0 to 1)" + NAMED),
    (
        "actual,predicted,pixels,pixels\nsky,sky,1,1\n",
        "counts.csv: has duplicate column names: actual, predicted, pixels, pixels; keep one of each",
    ),
    (
        ",".join(["1"] * 1025) + "\n",
        "counts.csv: holds object [1, 1025], expected counts [classes, clusters], at most 1024 of each",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_bad_tables_are_told(folder: Path, text: str, message: str) -> None:
    assert _fault(text) == message


@pytest.mark.parametrize(
    ("text", "classes", "clusters"),
    [
        ("class,a,b\ncow,0,1\ncar,5,6\n", 2, 2),
        (",0,1\ncow,0,1\ncar,5,6\n", 2, 2),
        ("cow,0,2\ncar,5,6\n", 2, 2),
        ("cow,7,8,9\ncar,5,6,7\n", 2, 3),
        ("cow,1\ncar,5\n", 2, 1),
        ("1,2,3\n4,5,6\n", 2, 3),
    ],
    ids=["a header of names", "an empty corner", "a gap", "from another number", "one column", "no names"],
)
def test_counts_are_not_taken_for_column_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, classes: int, clusters: int
) -> None:
    Path("counts.csv").write_text(text)
    evaluate.main(["--confusion", "counts.csv"])
    assert f"confusion: {classes} classes, {clusters} clusters" in capsys.readouterr().out


def test_the_table_of_evaluate_is_not_turned(folder: Path) -> None:
    """It was read as it is, without a word."""
    text = confusion_table(NAMES, CONFUSION, np.array([1, 3, 0, 2])).to_csv(index=False)
    assert _fault(text, "--transposed") == (
        "counts.csv: says of which class and cluster each count is, so it cannot be turned; leave out "
        "--transposed"
    )


def test_bad_files_are_told(folder: Path) -> None:
    assert _fault(None, path="gone.csv") == (
        "gone.csv: not found; give a .csv or .npy file with the pixel count of each class and cluster"
    )
    Path("counts.csv").write_bytes(b"\xff\xfe\x00")
    assert _fault(None).startswith("counts.csv: not a CSV table ('utf-8' codec can't decode byte 0xff")
    np.save("counts.npy", np.zeros(3))
    assert _fault(None, path="counts.npy") == (
        "counts.npy: holds float64 [3], expected counts [classes, clusters], at most 1024 of each"
    )
    np.save("counts.npy", np.array([[1, -1]]))
    assert _fault(None, path="counts.npy") == (
        "counts.npy: class 0, cluster 1: '-1'; expected a count of pixels: a whole number, 0 or more"
    )


def test_nothing_is_unpickled(folder: Path) -> None:
    np.save("counts.npy", np.array([[print]]), allow_pickle=True)
    assert "counts.npy: not a .npy array (" in _fault(None, path="counts.npy")


def test_files_that_do_not_belong_together_are_told_at_once(folder: Path) -> None:
    Path("other.csv").write_text("1,2\n")
    write_classes(folder, NAMES[:3])
    told = _fault(_plain(CONFUSION), "--matched-on", "other.csv", "--classes", "classes.csv")
    assert told.splitlines() == [
        "other.csv: has 1 classes and 2 clusters, but counts.csv has 4 classes and 4 clusters; give a "
        "matrix with the same classes and clusters",
        "classes.csv: names 3 classes, but counts.csv has 4 classes and 4 clusters; list every class, "
        "or transpose the matrix with --transposed",
    ]


TAXONOMY = (
    "label_id,label,class_id,class,kind\n"
    "0,cat,1,animal,thing\n1,dog,1,animal,thing\n2,fog,,,\n3,sea,0,{},stuff\n"
)


def test_a_taxonomy_names_classes_too(folder: Path) -> None:
    Path("counts.csv").write_text("5,1\n0,5\n")
    Path("taxonomy.csv").write_text(TAXONOMY.format("water"))
    argv = ["--confusion", "counts.csv", "--classes", "taxonomy.csv", "--readings-table", "readings.csv"]
    evaluate.main([*argv, "--per-class", "classes_out.csv"])
    assert pd.read_csv("classes_out.csv")["class"].tolist() == ["water", "animal"]
    readings = pd.read_csv("readings.csv").set_index("score")
    assert readings.loc["stuff · truth_alone", "accuracy"] == pytest.approx(5 / 6, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not found; give a .csv with the columns id, name, kind"),
        (
            "id,name\n0,sky\n",
            "is not a table of id, name, kind with ids 0, 1, ...; give a .csv with the columns",
        ),
        ("id,name,kind\n0,sky,stff\n", "has the kind 'stff', expected thing, stuff or nothing; give a .csv"),
        (TAXONOMY.format("water") + "4,ice,0,ice,stuff\n", "each class id needs exactly one name and kind"),
        (TAXONOMY.format("water") + "4,ice,3,ice,stuff\n", "each class id needs exactly one name and kind"),
        (TAXONOMY.format("water") + "4,ice,2,ice,stff\n", "has the kind 'stff', expected thing, stuff or"),
    ],
)
def test_bad_classes_are_told(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        Path("named.csv").write_text(text)
    assert _fault("5,1\n0,5\n", "--classes", "named.csv").startswith(f"named.csv: {message}")


def test_other_names_are_told(folder: Path) -> None:
    told = _fault(_plain(CONFUSION, names=("cow", "bus", "sky", "grass")), "--classes", "classes.csv")
    assert told == (
        "classes.csv: calls class 1 'car', but counts.csv calls it 'bus'; list the classes in the order of "
        "this matrix"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of the arguments --predictions --confusion is required"),
        (["--predictions", "a", "--confusion", "b"], "not allowed with argument"),
        (
            ["--predictions", "a", "--truth", "b"],
            "--predictions needs --metrics, --readings, --readings-table,",
        ),
    ],
)
def test_flags_that_do_not_go_together(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        evaluate.main(argv)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
