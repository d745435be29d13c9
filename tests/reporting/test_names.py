"""names.yaml and legend.json: written, read back, merged, and refused for other clusters."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.core.tensors import write_tensors
from stages.dataset.truth import UNMATCHED
from stages.reporting.legend import (
    Legend,
    cluster_legend,
    plain_legend,
    read_cluster_legend,
    read_legend,
    write_cluster_legend,
)
from stages.reporting.lineage import Lineage, lineage
from stages.reporting.names import NUMBER, Names, OtherClustersError, names_text, read_names, write_names
from stages.reporting.palette import palette
from stages.settings.errors import UserError

CLUSTERS = Lineage("aaaa", ("bbbb",))
HEAD = "clusters: aaaa\n"
FORM = "names.yaml: must have the keys clusters and names, as `make names` and the report page write them"
LETTERS = st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"))


@given(st.dictionaries(st.integers(0, 254), st.text(LETTERS, max_size=80).map(str.strip).filter(bool)))
def test_any_names_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, given_names: dict[int, str]
) -> None:
    path = tmp_path_factory.mktemp("names") / "names.yaml"
    colours = {name: (number, 0, 255) for number, name in enumerate(set(given_names.values()))}
    write_names(path, Names(given_names, colours), CLUSTERS.own, {0: "a remark"})
    found = read_names(path, num_clusters=255, clusters=CLUSTERS)
    assert dict(found.of) == given_names
    assert dict(found.colours) == colours


def test_the_text_is_plain_yaml() -> None:
    content = yaml.safe_load(names_text(Names({1: "road", 3: 'a "b" \\'}), CLUSTERS.own))
    assert content == {"clusters": "aaaa", "names": {1: "road", 3: 'a "b" \\'}}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("names: {9: sky}", "there is no cluster 9; clusters are 0 to 3"),
        ("names: {-1: sky}", f"names.yaml: names.-1: {NUMBER}, got -1"),
        ("names: {'0': sky}", f"names.yaml: names.0: {NUMBER}, got '0'"),
        ("names: {sky: 0}", f"names.yaml: names.sky: {NUMBER}, got 'sky'"),
        ("names: {0: ''}", "names.0.name: a name has 1 to 200 characters, got ''"),
        ("names: {0: ' '}", "names.0.name: a name has 1 to 200 characters, got ''"),
        ("names: {0: {color: '#000000'}}", "names.0.name: missing"),
        ("names: {0: [sky]}", "names.0"),
        ("names: {0: 42}", "a name is text, and this is 42 to YAML; put the name in quotes"),
        ("names: {0: null}", "a name is text, and this is None to YAML; put the name in quotes"),
        ('names: {0: "one\\ntwo"}', "'one\\ntwo' has a line break or another control character"),
        (
            "names:\n  0:\n    name: sky\n    color: #0000ff",
            '#rrggbb in quotes, such as "#d55e00", because # starts a comment in YAML, got None',
        ),
        ("names: {0: {name: sky, color: blue}}", "names.0.color: must be #rrggbb in quotes"),
        ("names: {0: {name: sky, colour: '#000000'}}", "colour: unknown key; did you mean 'color'?"),
        ("names: {0: sky, 0: road}", "duplicate key"),
        ("names: {0: {name: a, color: '#000000'}, 1: {name: a, color: '#000001'}}", "give it one color"),
        ("title: {}", "names.yaml: title: unknown key; known: clusters, names"),
        ("nmes: {}", "names.yaml: nmes: unknown key; did you mean 'names'?"),
        ("clusters: 123456", "names.yaml: clusters: must be text, in quotes"),
        ("- sky", FORM),
        ("sky", FORM),
        ("7", FORM),
        ("names: [sky]", "names.yaml: names: a cluster has its number before its name, as in 0: sky"),
        ("names: sky", "names.yaml: names: a cluster has its number before its name, as in 0: sky"),
        ("\x00", "names.yaml"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "names.yaml").write_text(f"{HEAD}{text}" if text.startswith("names") else text)
    with pytest.raises(UserError, match=r"names\.yaml") as refused:
        read_names(tmp_path / "names.yaml", num_clusters=4, clusters=CLUSTERS)
    assert fault in str(refused.value)


def test_names_hold_for_their_clusters_and_those_that_continue_them(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    write_names(path, Names({0: "sky"}), "bbbb")
    assert read_names(path, num_clusters=2, clusters=CLUSTERS).of == {0: "sky"}
    with pytest.raises(OtherClustersError, match="names clusters bbbb, but those in use are cccc"):
        read_names(path, num_clusters=2, clusters=Lineage("cccc"))
    write_names(path, Names({15: "sky"}), "bbbb")
    with pytest.raises(OtherClustersError):  # not that there is no cluster 15: it is of another training
        read_names(path, num_clusters=2, clusters=Lineage("cccc"))
    path.write_text("names: {0: sky}")
    with pytest.raises(OtherClustersError, match=r"add the line clusters: 'cccc'"):
        read_names(path, num_clusters=2, clusters=Lineage("cccc"))
    given = read_names(path, num_clusters=2, clusters=Lineage("cccc"), may_lack_clusters=True)
    assert given.of == {0: "sky"}


def test_a_template_that_nobody_has_changed_names_nothing(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    write_names(path, Names({0: "cluster 0", 1: "sky", 2: "cluster 2"}), "aaaa")
    assert read_names(path, num_clusters=3, clusters=CLUSTERS).of == {1: "sky"}
    write_names(path, Names({0: "cluster 0", 9: "cluster 9"}), "aaaa")
    assert read_names(path, num_clusters=3, clusters=Lineage("cccc")) == Names(), (
        "so none are lost after a training"
    )


def test_a_number_is_a_name_where_a_person_means_it(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(
        HEAD + "names: {0: cluster 1, 2: cluster 2, 3: cluster 2, 4: {name: cluster 4, color: '#000001'}}"
    )
    found = read_names(path, num_clusters=5, clusters=CLUSTERS)
    assert found.of == {0: "cluster 1", 2: "cluster 2", 3: "cluster 2", 4: "cluster 4"}


def test_spaces_around_a_name_make_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(HEAD + "names: {0: sky, 1: 'sky ', 2: {name: '  sky', color: '#000001'}}")
    found = read_names(path, num_clusters=3, clusters=CLUSTERS)
    assert found == Names(dict.fromkeys(range(3), "sky"), {"sky": (0, 0, 1)})


def test_an_empty_file_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("# nothing yet\n")
    assert read_names(tmp_path / "names.yaml", num_clusters=2, clusters=CLUSTERS) == Names()


def test_lineage_begins_with_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "centroids.safetensors"
    write_tensors(path, {"centroids": torch.zeros(2, 3)}, {"continues": ["old"]})
    found = lineage(path)
    assert (found.earlier, found.void) == (("old",), {})
    assert found.own in found
    assert "old" in found
    write_tensors(path, {"centroids": torch.ones(2, 3)}, {})
    assert lineage(path).own not in found
    assert lineage(path).earlier == ()


def test_clusters_with_one_name_are_merged_and_share_a_color() -> None:
    names = Names({1: "sky", 3: "sky", 2: "road"}, {"road": (1, 2, 3)})
    legend = plain_legend(5, names)
    assert legend.names == ("cluster 0", "sky", "road", "sky", "cluster 4")
    assert legend.merged.tolist() == [0, 1, 2, 1, 4]
    assert (legend.colours[1] == legend.colours[3]).all()
    assert legend.colours[2].tolist() == [1, 2, 3]
    assert len(np.unique(legend.colours, axis=0)) == 4


def test_given_names_come_before_matched_classes() -> None:
    matched = np.array([1, 0, UNMATCHED])
    legend = Legend(("grass", "water"), matched, Names({0: "pond", 2: "grass"}))
    assert cluster_legend(legend).names == ("pond", "grass", "grass")
    assert (legend.cluster_colours[2] == legend.class_colours[0]).all()
    assert [entry["name"] for entry in legend.entries()] == ["grass", "water", "pond"]
    assert legend.merged.tolist() == [0, 1, 1], "cluster 1 has the name of its class"


def test_a_color_that_is_given_to_the_name_of_a_class_is_that_of_its_cluster_too() -> None:
    names = Names({2: "grass", 0: "pond"}, {"grass": (1, 2, 3)})
    legend = cluster_legend(Legend(("grass", "water"), np.array([1, 0, UNMATCHED]), names))
    assert legend.colours[1:].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert [row["merged_into"] for row in legend.rows()] == [0, 1, 1]


def test_a_color_that_is_given_to_the_name_of_a_class_is_that_of_the_class() -> None:
    """Truth, prediction and legend must agree; a cluster of another name keeps the color of its class."""
    names = Names({0: "grass"}, {"grass": (1, 2, 3), "sea": (9, 9, 9)})
    legend = Legend(("grass", "water"), np.array([0, 1, UNMATCHED]), names)
    assert legend.class_colours[0].tolist() == [1, 2, 3]
    assert (legend.class_colours[1] == palette(2)[1]).all()
    assert (legend.cluster_colours[:2] == legend.class_colours).all()
    assert legend.entries()[0] == {"name": "grass", "colour": "#010203"}
    lake = Legend(("grass", "water"), np.array([0, 1]), Names({1: "lake"}, {"water": (4, 5, 6)}))
    assert lake.cluster_colours[1].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("names", "shows"),
    [
        (Names(), True),
        (Names({0: "grass", 1: "lake", 2: "rock"}, {"grass": (1, 2, 3)}), True),
        (Names({1: "grass"}), False),
        (Names({2: "grass"}), False),
        (Names({1: "lake"}, {"lake": (1, 2, 3)}), False),
    ],
    ids=["none", "none that changes it", "of another class", "of a class without match", "own color"],
)
def test_colors_show_what_is_right_unless_names_say_otherwise(names: Names, shows: bool) -> None:
    assert Legend(("grass", "water"), np.array([0, 1, UNMATCHED]), names).shows_matching is shows


def test_a_match_of_no_pixel_gives_no_name() -> None:
    """`evaluate` matches as many clusters as there are classes, also to classes that do not occur."""
    classes = ("grass", "giraffe", "kite", "water")
    per_class = pd.DataFrame({"class": classes, "cluster": [2, 0, 1, ""], "iou": [0.5, 0.0, "", 0.0]})
    legend = read_legend(classes, per_class, 3, Names())
    assert cluster_legend(legend).names == ("cluster 0", "cluster 1", "grass")
    assert len(np.unique(legend.cluster_colours, axis=0)) == 3


def test_a_legend_is_read_back_for_its_own_clusters_alone(tmp_path: Path) -> None:
    per_class = pd.DataFrame({"class": ["grass", "water"], "cluster": [2, 0], "iou": [0.5, 0.1]})
    legend = cluster_legend(read_legend(("grass", "water"), per_class, 3, Names({1: "sky"})))
    write_cluster_legend(tmp_path / "legend.json", legend, CLUSTERS.own)
    found = read_cluster_legend(tmp_path / "legend.json", CLUSTERS.own)
    assert found is not None
    assert found.names == ("water", "sky", "grass")
    assert (found.colours == legend.colours).all()
    assert (found.merged == legend.merged).all()
    assert read_cluster_legend(tmp_path / "legend.json", "bbbb") is None
    (tmp_path / "legend.json").write_text('{"made_for": "aaaa"}')
    with pytest.raises(UserError, match=r"legend.json: not a legend"):
        read_cluster_legend(tmp_path / "legend.json", CLUSTERS.own)
