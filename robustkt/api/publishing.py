"""Publishing a generation as a folder in the form of a Hugging Face Hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkt import hub
from robustkt.errors import RobustKTError
from robustkt.registry import Registry


def push(
    generation: str = "@latest",
    *,
    to: Path | None = None,
    repo: str | None = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Write the published form of a generation to the folder `to`, or with `dry_run` only say what it would be.

    Args:
        generation: what is published.
        to: the folder; made, or replaced when it holds an earlier publication.
        repo: the Hub repository that the folder is meant for; named in the answer.
        dry_run: write nothing.
        registry: the nearest one by default.

    Returns:
        generation, id, repo, url, commit, to, dry_run, files [{path, size}], card.

    Raises:
        RobustKTError: damaged data, a folder that holds something else, or neither `to` nor `dry_run`.
    """
    registry = registry or Registry.locate()
    found = registry.get(generation)
    if to is None and not dry_run:
        raise RobustKTError(
            "this version writes the published form to a folder; it does not upload yet",
            f"Type `robustkt push {found.name} --to DIR`, then upload DIR with `hf upload`.",
        )
    files = hub.folder_files(registry, found)
    if to is not None and not dry_run:
        hub.write_folder(files, to)
    return {
        "generation": found.name,
        "id": found.id,
        "repo": repo,
        "url": None,
        "commit": None,
        "to": None if to is None else str(to),
        "dry_run": dry_run,
        "files": [{"path": path, "size": file.size} for path, file in files.items()],
        "card": files["README.md"].read().decode(),
    }
