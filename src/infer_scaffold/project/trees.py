"""Three-way merges of trees by git, apart from the repository whose objects they borrow.

Bytes are merged, never decoded text. Files that a side moved are followed, and no git setting of
the user or the machine applies.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infer_scaffold import git

# The files of a tree: by path, mode and object id with a blank between them, as git writes them.
Entries = dict[str, str]

OURS, _THEIRS = "before-updating", "after-updating"
_SIDES = {OURS: "before updating", _THEIRS: "after updating"}
_SETTINGS = {
    **git.AS_RENDERED,
    **git.FALLBACK_IDENTITY,
    "core.fileMode": "true",
    "merge.conflictStyle": "merge",
    # git takes a folder that one side has emptied for moved, and would move our own files, too.
    "merge.directoryRenames": "false",
}


@dataclass(frozen=True)
class Merged:
    """The outcome of a merge. `stages` has the sides of each conflict, by path and stage.

    Stage 1 is the base, 2 our side and 3 the other side. `marked` are the conflicts in whose text
    both sides are marked; `moved` tells where our side has moved files of the base, and
    `theirs_moved` where the other side has.
    """

    entries: Entries
    stages: dict[str, dict[int, str]]
    marked: set[str]
    moved: dict[str, str]
    theirs_moved: dict[str, str]


class Store:
    """A repository in a folder of its own, with the objects of another one at hand."""

    def __init__(self, folder: Path, objects: Path, object_format: str) -> None:
        self._folder = folder
        folder.mkdir()
        self._git("init", "--quiet", "--bare", f"--object-format={object_format}")
        (self.objects / "info" / "alternates").write_text(
            f"{quoted(objects)}\n", "utf-8", "surrogateescape"
        )

    @property
    def objects(self) -> Path:
        """The folder of the objects that are written here, each a file."""
        return self._folder / "objects"

    def add_folder(self, folder: Path) -> Entries:
        """Take in the files of a folder."""
        self._git("read-tree", "--empty")
        here = (f"--git-dir={self._folder}", "--work-tree=.")
        git.output(
            folder, *here, "add", "--all", "--force", settings=_SETTINGS, variables=git.ISOLATED
        )
        return self.entries(self._git("write-tree").strip())

    def entries(self, tree: str, *folder: str) -> Entries:
        """Return the files of a tree or commit, or those below a folder of it."""
        found = {}
        for line in _fields(self._git("ls-tree", "-r", "-z", tree, "--", *folder)):
            described, _, path = line.partition("\t")
            mode, _, name = described.split()
            found[path] = f"{mode} {name}"
        return found

    def tree(self, entries: Mapping[str, str], onto: str = "") -> str:
        """Write a tree of these files; with `onto`, that commit with these files changed.

        A file whose entry is empty is taken away.
        """
        self._git("read-tree", onto or "--empty")
        # Removals first: a folder may take the place of a file.
        lines = [
            f"{entries[path] or '0 ' + '0' * len(onto)}\t{path}\0"
            for path in sorted(entries, key=lambda path: (bool(entries[path]), path))
        ]
        self._git("update-index", "-z", "--index-info", input="".join(lines))
        return self._git("write-tree", "--missing-ok").strip()

    def read(self, entries: Iterable[str]) -> list[bytes]:
        """Return the contents of files."""
        names = "".join(f"{entry.split()[1]}\n" for entry in entries)
        rest = self._git("cat-file", "--batch", input=names).encode("utf-8", "surrogateescape")
        contents = []
        while rest:
            head, _, rest = rest.partition(b"\n")
            size = int(head.split()[2])
            contents.append(rest[:size])
            rest = rest[size + 1 :]
        return contents

    def write(self, contents: Iterable[bytes]) -> list[str]:
        """Store contents; return their object ids."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            paths = []
            for number, content in enumerate(contents):
                paths.append(Path(folder, str(number)))
                paths[-1].write_bytes(content)
            listed = "".join(f"{path}\n" for path in paths)
            arguments = ("hash-object", "-w", "--no-filters", "--stdin-paths")
            return self._git(*arguments, input=listed).split()

    def with_crlf(self, entries: Entries) -> list[str]:
        """Return the text files all of whose lines end as on Windows."""
        self.tree(entries)
        lines = _fields(self._git("ls-files", "--eol", "-z"))
        return [line.partition("\t")[2] for line in lines if line.startswith("i/crlf")]

    def renamed(self, before: Entries, after: Entries) -> dict[str, str]:
        """Return the files that were moved between two trees, as far as they are alike."""
        return self._moved(self.tree(before), self.tree(after))

    def merge(
        self, base: Entries, ours: Entries, theirs: Entries, known: Mapping[str, str]
    ) -> Merged:
        """Merge two descendants of `base`. Files are followed where either side moved them.

        `known` tells where our side has files of `base`, whatever is in them.
        """
        root = self._commit(base)
        # Both sides are compared at the path of the base, unless another file is in the way.
        known = {
            path: place
            for path, place in known.items()
            if path != place and not is_taken(path, ours) and place not in theirs
        }
        paths = {place: path for path, place in known.items()}
        ours = {paths.get(path, path): entry for path, entry in ours.items()}
        for name, side in zip(_SIDES, (ours, theirs), strict=True):
            self._git("branch", name, self._commit(side, "-p", root))
        arguments = ("merge-tree", "--write-tree", "-z", "--no-messages", *_SIDES)
        tree, *listed = _fields(self._git(*arguments, allowed=(0, 1)))
        stages: dict[str, dict[int, str]] = {}
        for line in listed:
            described, _, path = line.partition("\t")
            mode, name, stage = described.split()
            stages.setdefault(path, {})[int(stage)] = f"{mode} {name}"
        stages = {known.get(path, path): sides for path, sides in stages.items()}
        entries = {known.get(path, path): entry for path, entry in self.entries(tree).items()}
        marked = self._with_plain_labels(entries, stages)
        ours_moved, theirs_moved = (self._moved(root, name) for name in _SIDES)
        return Merged(entries | marked, stages, set(marked), ours_moved | known, theirs_moved)

    def _moved(self, before: str, after: str) -> dict[str, str]:
        kind = ("-r", "-z", "-M", "-l0", "--no-rename-empty")
        shown = ("--diff-filter=R", "--name-status")
        fields = _fields(self._git("diff-tree", *kind, *shown, before, after))
        return dict(zip(fields[1::3], fields[2::3], strict=True))

    def _with_plain_labels(self, entries: Entries, stages: Iterable[str]) -> Entries:
        """Return the marked files with the sides named in words: a branch cannot have blanks."""
        marked = {}
        # A submodule has no content.
        paths = [path for path in stages if entries.get(path, "160000").split()[0] != "160000"]
        contents = self.read(entries[path] for path in paths)
        for path, old in zip(paths, contents, strict=True):
            content = old
            for mark, branch in zip((b"<<<<<<< ", b">>>>>>> "), _SIDES, strict=True):
                content = content.replace(mark + branch.encode(), mark + _SIDES[branch].encode())
            if content != old:
                marked[path] = content
        names = self.write(marked.values())
        changed = zip(marked, names, strict=True)
        return {path: f"{entries[path].split()[0]} {name}" for path, name in changed}

    def _commit(self, entries: Entries, *parent: str) -> str:
        return self._git("commit-tree", self.tree(entries), *parent, "-m", "Side").strip()

    def _git(self, *arguments: str, input: str = "", allowed: Iterable[int] = (0,)) -> str:
        return git.output(
            self._folder,
            *arguments,
            settings=_SETTINGS,
            variables=git.ISOLATED,
            input=input,
            allowed=tuple(allowed),
        )


def is_taken(path: str, files: Entries) -> bool:
    """Say whether a file is at `path`, above it or below it."""
    parents = {str(parent) for parent in PurePosixPath(path).parents}
    return path in files or any(name in parents or name.startswith(f"{path}/") for name in files)


def quoted(path: Path) -> str:
    """Return a path as git reads it in lists of object folders, where ":" and others mean more."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _fields(text: str) -> list[str]:
    return text.split("\0")[:-1]
