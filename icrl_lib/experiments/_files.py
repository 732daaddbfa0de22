"""Result files: read whole or refused by name, written whole, by one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def target(path: str | os.PathLike) -> Path:
    """Return the file to write to: that behind a symbolic link, so that the link stays."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def beside(path: Path, ending: str) -> Path:
    """Return the file whose name is that of `path`, all of it, and an ending."""
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def reserved(path: Path) -> Generator[None, None, None]:
    """Keep other runs away from a file; raise a ValueError if one is at work or it cannot be made.

    The system gives the lock back when the process ends, however it ends. Where there are no such
    locks, on Windows and some network drives, nobody is kept away.
    """
    lock = beside(path, ".lock")
    try:
        held = _hold(lock)
    except BlockingIOError as error:
        raise ValueError(
            f"path: expected a file that no other run is writing, got {path}; wait for that run "
            "or choose another folder"
        ) from error
    except OSError as error:
        raise ValueError(
            f"path: expected a file that can be written, got {path}; {error}"
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.close()


def _hold(lock: Path) -> TextIO:
    while True:
        file = lock.open("w", encoding="utf-8")
        if fcntl is None:
            file.close()
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a drive without locks
            return file
        # The run that held it may have ended, and removed it, since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(lock, file.fileno()):
                return file
        file.close()


def read(path: Path) -> dict[str, Any] | None:
    """Return the results in a file, None if there is no file; refuse whatever else it holds."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results, dict):
            raise ValueError(f"it holds {results!r:.40}")
    except (FileNotFoundError, NotADirectoryError):  # whoever writes will say what is in the way
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return results


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error that says that a file holds no results, and how to go on."""
    return ValueError(
        f"path: expected results that a run wrote, {path} holds none ({error}); remove it to run "
        "again, or choose another folder"
    )


def write(path: Path, results: Mapping[str, Any], indent: int | None = None) -> None:
    """Write so that at any moment the file is whole: the old results or the new."""
    separators = (",", ":") if indent is None else None
    part = beside(path, ".part")
    text = json.dumps(results, indent=indent, separators=separators) + "\n"
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
