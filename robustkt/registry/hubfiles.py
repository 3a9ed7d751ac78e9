"""Files of a Hugging Face Hub repository, written a commit a batch; a commit upon a known one is an exclusive write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTEMPTS = 20  # of a commit upon the newest one, while others commit too
MOVED = (409, 412)  # what the Hub answers when there is a newer one


class Commits:
    """A folder of a repository, as a place to write to."""

    def __init__(self, fs: Any, base: str) -> None:
        from huggingface_hub import HfApi

        at = fs.resolve_path(base)
        self.api = HfApi(endpoint=fs.endpoint, token=fs.token, library_name="robustkt")
        self.repo = {"repo_id": at.repo_id, "repo_type": at.repo_type, "revision": at.revision}
        self.prefix = f"{at.path_in_repo}/" if at.path_in_repo else ""

    def write(self, files: Mapping[str, bytes], upon: str | None = None) -> None:
        """All files in one commit: seen together or not at all."""
        from huggingface_hub import CommitOperationAdd

        added = [CommitOperationAdd(self.prefix + path, data) for path, data in files.items()]
        told = next(iter(files)) if len(files) == 1 else f"{len(files)} files"
        self.api.create_commit(operations=added, commit_message=f"robustkt: {told}", parent_commit=upon, **self.repo)

    def create(self, path: str, data: bytes) -> None:
        """A file where there is none; nothing where there is one."""
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(ATTEMPTS):
            head = self.api.repo_info(**self.repo).sha
            if self.api.file_exists(filename=self.prefix + path, **{**self.repo, "revision": head}):
                return
            try:
                self.write({path: data}, upon=head)
                return
            except HfHubHTTPError as error:
                if error.response.status_code not in MOVED or attempt == ATTEMPTS - 1:
                    raise
