"""Looks for what does not belong in the repository: this machine's paths, package index addresses, lock files, big files.

Prints one line per find and exits 1 if there is any. Standard library only.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_SIZE_BYTES = 3_000_000  # the largest file in tests/data has 2.6 MB
MACHINE_PATHS = ("/root", "/work/main", "/work/shared")  # the machines on which this is developed

# Where packages come from is each machine's own setting (pip's and uv's configuration), never the repository's.
INDEX_WORDS = (
    r"(?:extra[-_])?index[-_]url\s*=|--(?:extra-)?index-url|--find-links|\bfind[-_]links\s*="
    r"|\b(?:PIP|UV)_(?:EXTRA_)?(?:INDEX_URL|DEFAULT_INDEX|FIND_LINKS)\b|\[\[tool\.uv\.index"
)
INDEX_HOSTS = r"\b(?:pypi|pythonhosted|npmjs|crates|proxy\.golang|repo1?\.maven)\.(?:org|com|io)\b"


def files() -> Iterator[Path]:
    """Tracked files and new ones that git would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit("scripts/_tree.py asks git which files belong to the project: run it in a clone, with git installed.")
    names = sorted({name for name in listed.decode().split("\0") if name})
    yield from (path for path in (ROOT / name for name in names) if path.is_file())


def patterns() -> dict[str, re.Pattern[str]]:
    """What must not be in a text file, by the word to say when it is."""
    places = {str(ROOT), str(Path.home()), *MACHINE_PATHS} - {"/"}
    return {
        "a path of one machine": re.compile(r"(?<![\w.:-])(?:" + "|".join(map(re.escape, sorted(places))) + r")(?![\w-])"),
        "an address of a package index": re.compile(f"{INDEX_WORDS}|{INDEX_HOSTS}"),
    }


def finds(path: Path, unwanted: dict[str, re.Pattern[str]]) -> Iterator[str]:
    """One message per line of the file, or per file, that does not belong."""
    name = path.relative_to(ROOT).as_posix()
    if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}:
        yield f"{name}: a lock file; constraints.txt is what this project keeps"
    if path.stat().st_size > MAX_SIZE_BYTES:
        yield f"{name}: {path.stat().st_size} bytes, more than {MAX_SIZE_BYTES}"
    if path == Path(__file__).resolve():
        return  # its patterns would find themselves
    content = path.read_bytes()
    if b"\0" in content:
        return  # binary data
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        yield from (f"{name}:{number}: {what}" for what, pattern in unwanted.items() if pattern.search(line))


def main() -> int:
    """Exit code: 0 clean, 1 something was found, and said."""
    unwanted = patterns()
    found = [message for path in files() for message in finds(path, unwanted)]
    print("\n".join(found) or "no strays")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
