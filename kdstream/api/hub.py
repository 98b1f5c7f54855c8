"""Upload to the Hugging Face Hub: a student's files as one commit of a model repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kdstream.errors import UserError
from kdstream.terminal import visible

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_hub(repository: str) -> None:
    """That an upload can begin, before any long work: name, package, token.

    Raises:
        UserError: one of them is missing or wrong.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"--hub {visible(repository)}: it is user/name, as on the Hub")
    if not _hub().get_token():
        raise UserError("--hub needs a token of the Hub with write access: hf auth login, or set HF_TOKEN")


def upload(repository: str, files: Mapping[str, bytes], message: str, private: bool = False) -> str:
    """Make the repository where it does not exist, and put the files there in one commit.

    The token is that of the environment (``HF_TOKEN``) or of ``hf auth login``; it is shown nowhere.

    Args:
        repository: ``user/name``.
        files: name there -> content.
        message: of the commit.
        private: a repository that is made is seen by its owner alone.

    Returns:
        The repository's address.

    Raises:
        UserError: the Hub is not reached, or refuses.
    """
    check_hub(repository)
    hub = _hub()
    token = str(hub.get_token())
    adds = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
    try:
        interface = hub.HfApi(token=token, library_name="kdstream")
        address = interface.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        interface.create_commit(repository, adds, commit_message=message, repo_type="model")
    except Exception as error:  # its own, and those of what it sends with
        said = visible(str(error).strip() or type(error).__name__).replace(token, "***")[:300]
        raise UserError(f"the upload to {repository} failed: {said}") from None
    return str(address)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("--hub needs huggingface_hub: pip install 'kdstream[hub]'") from None
    return huggingface_hub
