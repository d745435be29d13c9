"""Names that people give to pixel clusters, in names.yaml; clusters with one name count as one.

clusters: 3f2a9b01c6de   # the clusters that the names are for (`lineage`); only `--names` does without
names:
  0: sky
  4: sky                 # merged with cluster 0
  2: {name: road, color: "#d55e00"}
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from stages.core.artefacts import unreadable, write_text
from stages.reporting.lineage import Lineage
from stages.runtime.progress import tell
from stages.settings.errors import UserError, raise_faults
from stages.settings.params import unknown_key
from stages.settings.section import Section, one_fault
from stages.settings.yaml_text import FAULTS, loaded

FILE = Path("names.yaml")
ABSENT = "correct the path, or write a first names.yaml with `make names`"  # remedy
FORM = "must have the keys clusters and names, as `make names` and the report page write them"
LONGEST = 200  # characters of a name
LENGTH = f"a name has 1 to {LONGEST} characters"
COLOR = 'must be #rrggbb in quotes, such as "#d55e00", because # starts a comment in YAML'
NUMBER = "the number of a cluster is 0 or more and written without quotes, as in 0: sky"
HEAD = """\
# Names of the pixel clusters: number, name. Clusters with one name count as one. The report page has a
# form that writes this file. A color of your own: 2: {name: road, color: "#d55e00"}
"""

Colour = tuple[int, int, int]


class OtherClustersError(UserError):
    """The names were given for other clusters than those in use."""


def _as_text(name: Any) -> Any:
    """A name without spaces around it, so that what looks alike is one name.

    Raises:
        ValueError: it is no text, or has a line break or another control character.
    """
    if not isinstance(name, str):
        raise ValueError(f"a name is text, and this is {name!r} to YAML; put the name in quotes")
    if any(category(letter) == "Cc" for letter in name):
        raise ValueError(f"{name!r} has a line break or another control character; take it out")
    return name.strip()


class _Name(Section):
    name: Annotated[
        str, Field(min_length=1, max_length=LONGEST), one_fault(LENGTH), BeforeValidator(_as_text)
    ]
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$"), one_fault(COLOR)] = ""


class _NamesFile(Section):
    clusters: Annotated[str | None, one_fault("must be text, in quotes")] = None
    names: dict[Annotated[int, Field(ge=0), one_fault(NUMBER)], _Name] = Field(default_factory=dict)

    @field_validator("names", mode="before")
    @classmethod
    def _text_is_a_name(cls, names: Any) -> Any:
        if names is None:
            return {}
        if not isinstance(names, Mapping):
            raise ValueError("a cluster has its number before its name, as in 0: sky")
        return {cluster: one if isinstance(one, Mapping) else {"name": one} for cluster, one in names.items()}


@dataclass(frozen=True)
class Names:
    """Names of clusters, and colors of names.

    Attributes:
        of: name of each named cluster id.
        colours: RGB, 0 to 255, of each name that was given a color.
    """

    of: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[str, Colour] = field(default_factory=dict)


def read_names(
    path: Path,
    *,
    num_clusters: int,
    clusters: Lineage,
    may_lack_clusters: bool = False,
    keeps_gone: bool = False,
) -> Names:
    """Read names.yaml.

    Args:
        path: the file.
        num_clusters: K; ids are 0 to K - 1.
        clusters: those in use. Names of a template that nobody has changed are left out.
        may_lack_clusters: whether names that do not say for which clusters they are count for those in use.
        keeps_gone: whether to keep names that were given for clusters that have gone; by default they are
            left out, which is said.

    Raises:
        UserError: the file is missing or invalid.
        OtherClustersError: the names are for other clusters, or do not say for which.
    """
    try:
        content = loaded(path.read_bytes()) or {}
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: {FORM}")
        file = _NamesFile.model_validate(content)
    except ValidationError as error:
        raise UserError(*(f"{path}: {_fault(one)}" for one in error.errors())) from error
    except (OSError, *FAULTS) as error:
        raise UserError(
            unreadable(path, "a names file", error, absent=ABSENT, damaged="correct it")
        ) from error
    file = file.model_copy(update={"names": _without_template(file.names)})
    if file.names and file.clusters is None and not may_lack_clusters:
        raise OtherClustersError(
            f"{path}: does not say which clusters it names; for those in use, add the line "
            f"clusters: {clusters.own!r}. It keeps names away from other clusters after another training"
        )
    if file.clusters is not None and file.clusters in clusters.void and not keeps_gone:
        file = _without_gone(path, file, clusters.void[file.clusters], num_clusters)
    if file.names and file.clusters is not None and file.clusters not in clusters:
        raise OtherClustersError(
            f"{path}: names clusters {file.clusters}, but those in use are {clusters.own}, made by another "
            "training, where a number means something else; look at the report page, and name them anew "
            "(make names FORCE=1; it replaces the names in the file, so keep a copy)"
        )
    raise_faults(_faults(path, file, num_clusters))
    return Names(
        {cluster: one.name for cluster, one in sorted(file.names.items())},
        {one.name: _rgb(one.color) for one in file.names.values() if one.color},
    )


def _fault(detail: ErrorDetails) -> str:
    parts = [str(part) for part in detail["loc"] if part != "[key]"]  # pydantic's word for a key of a mapping
    key, kind = ".".join(parts), detail["type"]
    if kind == "extra_forbidden":
        return unknown_key(key, parts[-1], list((_Name if len(parts) > 1 else _NamesFile).model_fields))
    if kind == "missing":
        return f"{key}: missing"
    if kind == "invalid_key":
        return FORM
    got = f", got {detail['input']!r}" if kind == "either" else ""
    return f"{key}: {detail['msg'].removeprefix('Value error, ')}{got}"


def _without_template(names: Mapping[int, _Name]) -> dict[int, _Name]:
    """The entries that a person has made: "cluster 7" of cluster 7 alone is what `make names` writes."""
    count = Counter(one.name for one in names.values())
    return {
        cluster: one
        for cluster, one in names.items()
        if one.name != f"cluster {cluster}" or one.color or count[one.name] > 1
    }


def _without_gone(path: Path, file: _NamesFile, void: Sequence[int], num_clusters: int) -> _NamesFile:
    """The file without the names of earlier clusters that none in use continues."""
    gone = {cluster for cluster in file.names if cluster in void or cluster >= num_clusters}
    if gone:
        listed = ", ".join(f"{cluster} {file.names[cluster].name!r}" for cluster in sorted(gone))
        tell(f"{path}: left out, for clusters that are gone: {listed}; name the new ones on the report page")
    left = {cluster: one for cluster, one in file.names.items() if cluster not in gone}
    return file.model_copy(update={"names": left})


def names_text(names: Names, clusters: str, comments: Mapping[int, str] | None = None) -> str:
    """Format names.yaml.

    Args:
        names: what to write.
        clusters: fingerprint of the clusters that are named.
        comments: a remark for each cluster, such as what it matches.
    """
    notes, done = comments or {}, set()
    lines = [HEAD + f"clusters: {clusters!r}", "names:" if names.of else "names: {}"]
    for cluster, name in sorted(names.of.items()):
        value = _quoted(name)
        if name in names.colours and name not in done:
            value = f'{{name: {value}, color: "{"#" + bytes(names.colours[name]).hex()}"}}'
            done.add(name)
        lines.append(f"  {cluster}: {value}" + (f"  # {notes[cluster]}" if cluster in notes else ""))
    return "\n".join(lines) + "\n"


def write_names(path: Path, names: Names, clusters: str, comments: Mapping[int, str] | None = None) -> None:
    """Write names.yaml; arguments as in `names_text`."""
    write_text(path, names_text(names, clusters, comments))


def _faults(path: Path, file: _NamesFile, num_clusters: int) -> list[str]:
    unknown = [cluster for cluster in file.names if cluster >= num_clusters]
    faults = [
        f"{path}: names.{one}: there is no cluster {one}; clusters are 0 to {num_clusters - 1}"
        for one in unknown
    ]
    colours: dict[str, str] = {}
    for one in file.names.values():
        if one.color and colours.setdefault(one.name, one.color) != one.color:
            faults.append(
                f"{path}: {one.name!r} has the colors {colours[one.name]} and {one.color}; give it one color"
            )
    return faults


def _rgb(colour: str) -> Colour:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _quoted(name: str) -> str:
    """A name as a YAML scalar in double quotes."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
