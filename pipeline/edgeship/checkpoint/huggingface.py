"""The Hugging Face hub, through `huggingface_hub` (0.36 to 2.x): its cache, tokens, mirrors and offline mode apply.

Only what an export reads is downloaded. Which commit a branch stands for is settled by the first file; everything
after it is asked for by that commit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgeship import __version__
from edgeship.checkpoint.files import (
    CONFIG,
    INDEX,
    MODULES,
    choose_weights,
    is_module_config,
    is_plain,
    module_configs,
    read_limited,
    require_tokenizer,
    side_files,
)
from edgeship.checkpoint.transfer import (
    ALTERED,
    ATTEMPTS,
    Progress,
    Want,
    not_cached,
    pause,
    sha256_of,
    storage_error,
    unreachable,
    wrong_hash,
)
from edgeship.errors import CheckpointError, EdgeshipError, SourceError

TRANSPORT = ("requests", "urllib3", "httpx", "httpx2", "ssl")
"""Modules whose exceptions mean the network: the clients let those of their HTTP library through."""


def fetch(repo: str, revision: str, want: Want, progress: Progress) -> tuple[Path, str]:
    """See `hub.fetch`; the directory is a snapshot in the client's cache, the revision a commit."""
    hub = _Hub(repo, revision, progress)
    config = hub.download(CONFIG, revision)
    snapshot, commit = config.parent, config.parent.name  # the cache's layout: snapshots/<commit>/<file>
    if want == "config":
        return snapshot, commit
    listed = hub.list_files(commit)
    if listed is None:
        _require_whole(snapshot, hub)
        return snapshot, commit
    files = {name: sha256 for name, sha256 in listed.items() if is_plain(name)}
    require_tokenizer(files, hub.place)
    weights = choose_weights(files, hub.place, lambda: read_limited(hub.download(INDEX, commit)))
    for name in side_files(files):
        hub.download(name, commit, files[name])
    if MODULES in files:
        for name in module_configs(read_limited(snapshot / MODULES), listed):
            hub.download(name, commit, listed[name])
    for name in weights:
        hub.download(name, commit, files[name])
    return snapshot, commit


def _require_whole(snapshot: Path, hub: _Hub) -> None:
    """Offline, a snapshot in the cache serves when its weights and tokenizer are all there."""
    names = {p.name for p in snapshot.iterdir() if p.is_file()}
    try:
        require_tokenizer(names, hub.place)
        choose_weights(names, hub.place, lambda: read_limited(snapshot / INDEX))
    except CheckpointError as e:
        raise hub.unreachable_because from e


class _Hub:
    """One repository, through the client; every failure becomes an EdgeshipError."""

    def __init__(self, repo: str, revision: str, progress: Progress) -> None:
        self._repo, self._revision, self._progress = repo, revision, progress
        self.place = f"huggingface: {repo} ({revision})"
        self.unreachable_because: EdgeshipError = unreachable(self.place, "no answer")

    def list_files(self, commit: str) -> dict[str, str | None] | None:
        """The files of a commit that may be wanted, and the sha256 of those that have one; None without a network."""
        import huggingface_hub  # not at the top: it takes half a second, and `plan` needs none of it

        api = huggingface_hub.HfApi(library_name="edgeship", library_version=__version__)
        try:
            info = self._attempt(lambda **_: api.model_info(self._repo, revision=commit, files_metadata=True), 2)
        except Exception as e:
            reason = self._explain(e, "")
            if _is_offline(e) or _is_transport(e) or _status(e) >= 500:
                self.unreachable_because = reason
                return None
            raise reason from e
        files = {s.rfilename: getattr(s.lfs, "sha256", None) for s in info.siblings or ()}
        return {name: sha256 for name, sha256 in files.items() if is_plain(name) or is_module_config(name)}

    def download(self, file: str, revision: str, sha256: str | None = None) -> Path:
        """The path of a file in the cache, downloaded when it is not there and then compared with `sha256`."""
        import huggingface_hub

        arguments: dict[str, Any] = {"library_name": "edgeship", "library_version": __version__}
        if "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters:  # not before 1.0
            arguments["tqdm_class"] = _bar(self._progress, file)
        try:
            cached = huggingface_hub.try_to_load_from_cache(self._repo, file, revision=revision)
            call = partial(huggingface_hub.hf_hub_download, self._repo, file, revision=revision, **arguments)
            path = Path(self._attempt(call, ATTEMPTS))
        except Exception as e:
            raise self._explain(e, file) from e
        if not isinstance(cached, str):
            if sha256 is not None:
                self._compare(path, file, sha256)
            size = path.stat().st_size
            self._progress(file, size, size)
        return path

    def _attempt(self, call: Callable[..., Any], attempts: int) -> Any:
        attempt = 1
        more: dict[str, bool] = {}
        while True:
            try:
                return call(**more)
            except Exception as e:
                if _is_transport(e) and attempt < attempts:  # what arrived before a cut is kept by older clients
                    pause(attempt)
                    attempt += 1
                elif _is_wrong_size(e) and not more:  # a part left from another run may be to blame: start afresh
                    more = {"force_download": True}
                else:
                    raise

    def _compare(self, path: Path, file: str, expected: str) -> None:
        found = sha256_of(path)
        if found != expected:
            path.resolve().unlink()  # the blob, then the link to it
            path.unlink(missing_ok=True)
            raise wrong_hash(self.place, file, expected, found)

    def _explain(self, error: Exception, file: str) -> EdgeshipError:
        from huggingface_hub import constants, errors

        cause = error.__cause__
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, Exception):
            error = cause  # "not in the cache either": what matters is why the hub gave nothing
        url = f"{constants.ENDPOINT}/{self._repo}"
        if _is_offline(error):
            return not_cached(self.place)
        if isinstance(error, errors.GatedRepoError):
            return SourceError(
                f"{self.place}: access to this repository has to be granted.",
                hint=f"accept its terms at {url}, then run `hf auth login` or set HF_TOKEN",
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return SourceError(
                f"{self.place}: no such repository, or it is private and the token (if any) does not open it.",
                hint=f"check the name at {url}; for a private one run `hf auth login` or set HF_TOKEN",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SourceError(
                f"{self.place}: the repository has no revision {self._revision!r}.",
                hint=f"name a branch, tag or full commit that {url} lists; the default branch is main",
            )
        if isinstance(error, errors.EntryNotFoundError):
            return SourceError(
                f"{self.place}: the repository has no {file}.",
                hint="name the original model: repositories of GGUF files, adapters or pickles cannot be exported",
            )
        return self._explain_rest(error, file)

    def _explain_rest(self, error: Exception, file: str) -> EdgeshipError:
        from huggingface_hub import constants, errors

        status = _status(error)
        if status in (401, 403):
            return SourceError(
                f"{self.place}: access denied (HTTP {status}).",
                hint="run `hf auth login` or set HF_TOKEN to a token that may read this repository",
            )
        if status:
            return SourceError(
                f"{self.place}: {file or 'the list of files'}: the hub answered HTTP {status}.",
                hint="try again later; see https://status.huggingface.co",
            )
        if isinstance(error, errors.HFValidationError):
            return SourceError(f"{self.place}: {_line(error)}.", hint="a repository is written as owner/name")
        if _is_wrong_size(error):
            return SourceError(f"{self.place}: {file}: {_line(error)}", hint=ALTERED)
        if isinstance(error, OSError) and error.errno is not None and not _is_transport(error):
            return storage_error(error, self.place, Path(constants.HF_HUB_CACHE))
        return unreachable(self.place, f"{type(error).__name__}: {_line(error)}")


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub import errors

    return isinstance(error, errors.OfflineModeIsEnabled)


def _is_transport(error: BaseException) -> bool:
    """Whether the network failed in a way that may pass, as against a hub that answered or offline mode."""
    from huggingface_hub import errors

    if _status(error) or isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or any(
        kind.__module__.partition(".")[0] in TRANSPORT for kind in type(error).__mro__
    )


def _status(error: BaseException) -> int:
    """The HTTP status of a hub that answered with an error, else 0."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _is_wrong_size(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _bar(progress: Progress, file: str) -> type:
    """A progress bar that draws nothing and tells `progress` instead."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]  # comes with huggingface_hub

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.done = int(kwargs.get("initial") or 0)

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which Xet counts apart from those written; one count is enough."""

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            progress(file, self.done, max(int(self.total or 0), self.done))

    return Silent
