"""Uploading a folder to the Hugging Face Hub."""

from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError

from radfm.publishing.evaluations import EVALUATION

_REPLACED_FILES = ["model*.safetensors", "*.safetensors.index.json", "radfm_*", EVALUATION]
_REPLACED_FILES += ["generator.json", "autoencoder/*", "denoiser/*", "text_encoder/*"]  # of an earlier upload


def refuse_without_hub(repo_id: str) -> None:
    """Raises: ValueError: the Hub is switched off, there is no token, or the name has no owner."""
    dry_run = "or write the folder alone with --dry-run --out FOLDER"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it, {dry_run}")
    if get_token() is None:
        raise ValueError(f"there is no token for {constants.ENDPOINT}: run hf auth login, or set HF_TOKEN, {dry_run}")
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} does not say whose repository it is: write OWNER/{repo_id}")


def upload_folder(folder: Path, repo_id: str, private: bool) -> str:
    """Makes the repository where there is none, and uploads the folder; returns the repository's address.

    Raises:
        ValueError: the Hub refuses the upload or cannot be reached.
    """
    api = HfApi(library_name="radfm", library_version=version("radfm"))
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Publish by radfm {version('radfm')}",
            delete_patterns=_REPLACED_FILES,
        )
    except HTTPError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{constants.ENDPOINT} did not take {repo_id}: {reason}") from error
    return str(url)
