"""YAML files with the line of every value, so that each error can say where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cloudctl.errors import CloudctlError, ConfigError

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: slower, same result
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

Path_ = tuple[Any, ...]

_TAG = "tag:yaml.org,2002:"
_PLAIN = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")


class Problems(list[CloudctlError]):
    """Collects every error of one pass, in the order in which they are found."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str, str | None]] = set()

    def add(self, ref: str, message: str, where: str | None = None, hint: str | None = None) -> None:
        """Remember one error of the site's files; once, though many nodes share the line it is on."""
        key = (ref, message, where)
        if key not in self._seen:
            self._seen.add(key)
            self.append(ConfigError(ref, message, where=where, hint=hint))


@dataclass(frozen=True)
class Document:
    """One YAML file of the site.

    Attributes:
        file: path relative to the site's directory, as errors show it.
        data: the content as plain Python values.
        lines: line number (from 1) of each value, by its path of keys and indices.
    """

    file: str
    data: Any
    lines: Mapping[Path_, int] = field(default_factory=dict)

    def where(self, *path: Any) -> str:
        """Return ``file:line`` of the value at ``path``, or of its nearest parent that is in the file."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.file}:{line}"
        return f"{self.file}:1"


def read_document(site: Path, file: str, problems: Problems, *, required: bool = True) -> Document | None:
    """Read one YAML file of the site.

    Args:
        site: the site's directory.
        file: path relative to it.
        problems: receives what is wrong with the file.
        required: whether a missing file is an error.

    Returns:
        The document; None when it is missing or is not YAML.
    """
    try:
        text = (site / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            problems.add(
                "file-missing",
                f"{file} is missing",
                str(site),
                "`cloudctl init DIR` makes a complete site; --site DIR or CLOUDCTL_SITE chooses one",
            )
        return None
    except (OSError, UnicodeDecodeError) as error:
        problems.add("file-unreadable", f"{file} cannot be read: {error}", file)
        return None
    return parse_document(file, text, problems)


def parse_document(file: str, text: str, problems: Problems) -> Document | None:
    """Parse YAML text; see ``read_document``."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        builder = _Builder(loader, file, problems)
        data = builder.build(root, ()) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ":1"
        what = " ".join(part for part in (error.problem, error.context) if part)
        problems.add("yaml-malformed", f"not valid YAML: {what}", f"{file}{position}")
        return None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problems.add("yaml-malformed", f"not valid YAML: {str(error).splitlines()[0]}", f"{file}:{line}")
        return None
    finally:
        loader.dispose()
    return Document(file, data, builder.lines)


class _Builder:
    """Turns composed nodes into plain values and remembers their lines."""

    def __init__(self, loader: Any, file: str, problems: Problems) -> None:
        self.loader = loader
        self.file = file
        self.problems = problems
        self.lines: dict[Path_, int] = {}
        self._open: set[int] = set()

    def build(self, node: Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise yaml.composer.ComposerError(None, None, "an anchor contains itself", node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Node, path: Path_) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        first: dict[Any, int] = {}
        merges: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merges.extend(value_node.value if isinstance(value_node, SequenceNode) else [value_node])
                continue
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.problems.add("yaml-key", "a key must be a plain word", f"{self.file}:{line}")
                continue
            key = self._scalar(key_node)
            if key in first:
                self.problems.add(
                    "duplicate-key",
                    f"'{key}' is given twice (first on line {first[key]})",
                    f"{self.file}:{line}",
                    "keep one of them: YAML would silently use the last",
                )
                continue
            first[key] = line
            self.lines[(*path, key)] = line
            result[key] = self.build(value_node, (*path, key))
        for merge in merges:
            if not isinstance(merge, MappingNode):
                line = merge.start_mark.line + 1
                self.problems.add("yaml-key", "'<<' needs a mapping", f"{self.file}:{line}")
                continue
            for key, value in self.build(merge, path).items():
                result.setdefault(key, value)
        return result

    def _scalar(self, node: ScalarNode) -> Any:
        tag = node.tag
        value: str = node.value
        if tag == f"{_TAG}str":
            return value
        # YAML 1.1 reads 52:54:00:12:34:56 (a MAC address) and 12:30 as numbers in base 60, and dates as
        # objects: in a site they are text.
        if tag in (f"{_TAG}int", f"{_TAG}float") and ":" in value:
            return value
        if tag == f"{_TAG}int" and _PLAIN.match(value):
            return int(value.replace("_", ""))
        if tag in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"):
            return self.loader.construct_object(node)
        if tag != f"{_TAG}timestamp" and tag != "!vault":
            line = node.start_mark.line + 1
            self.problems.add("yaml-tag", f"unknown YAML tag {tag}", f"{self.file}:{line}")
        return value
