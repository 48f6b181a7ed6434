"""Text to token ids and back, by the checkpoint's own `tokenizer.json` where there is one and `tokenizers` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeship_runtime.decode import ByteDetokenizer, Detokenizer, WindowDetokenizer
from edgeship_runtime.errors import ArtifactError, DependencyError, UsageError, missing_package
from edgeship_runtime.manifest import Manifest, artifact_file


class TextTokens(Protocol):
    """What a model needs of a tokenizer: `Tokenizer` here, or `llama_tokens.LlamaTokenizer`."""

    vocab_size: int

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; `special` adds what the tokenizer puts around a raw text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""

    def detokenizer(self) -> Detokenizer:
        """A fresh stream whose joined output equals `decode` of all its tokens."""

    def spellings(self) -> list[bytes] | str:
        """Bytes of every token, empty for special ones; where tokens have none, the text of `tokenizer.json`."""


class Tokenizer:
    """A fast tokenizer; safe to use from several threads."""

    def __init__(self, inner: Any, *, byte_level: bool) -> None:
        """`inner`: a `tokenizers.Tokenizer`."""
        # A file may ask for truncation or padding, which belong to training.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._byte_level = byte_level
        added = inner.get_added_tokens_decoder()
        self._special = {token.content for token in added.values() if token.special}
        self._bytes: dict[int, bytes] = {}
        self.vocab_size: int = inner.get_vocab_size()
        """Ids the tokenizer knows; a model's table may have more rows, never fewer that are used."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; `special` adds what the tokenizer puts around a raw text (a rendered template has it).

        Raises UsageError for text that is not Unicode (half of a surrogate pair).
        """
        try:
            return list(self._inner.encode(text, add_special_tokens=special).ids)
        except (UnicodeError, TypeError) as error:
            raise UsageError(
                f"the text cannot be turned into tokens ({error})", hint="it holds half of a surrogate pair"
            ) from None

    def cut(self, length: int) -> None:
        """Let `tokens` keep at most `length`, special ones included; raises UsageError where these do not fit."""
        if length <= self._inner.num_special_tokens_to_add(False):
            raise UsageError(f"a context of {length} tokens has no room beside the special ones")
        self._inner.enable_truncation(length)

    def tokens(self, text: str) -> Any:
        """The `tokenizers.Encoding` of a raw text, with what the tokenizer puts around it."""
        try:
            return self._inner.encode(text)
        except (UnicodeError, TypeError) as error:
            raise UsageError(f"the text cannot be turned into tokens ({error})") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it, None when there is none."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def detokenizer(self) -> Detokenizer:
        """A fresh stream whose joined output equals `decode` of all its tokens."""
        return ByteDetokenizer(self.bytes_of) if self._byte_level else WindowDetokenizer(self.decode)

    def spellings(self) -> list[bytes] | str:
        """Bytes of every token, empty for special ones; the file's text when the vocabulary is not byte-level."""
        return [*map(self.bytes_of, range(self.vocab_size))] if self._byte_level else str(self._inner.to_str())

    def bytes_of(self, token: int) -> bytes:
        """Bytes of a token of a byte-level vocabulary; empty for special and unknown ones."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spelled(self._inner.id_to_token(token))
        return found

    def _spelled(self, token: str | None) -> bytes:
        if token is None or token in self._special:
            return b""
        try:
            return bytes(_BYTE_OF[letter] for letter in token)
        except KeyError:  # an added token spelled as plain text
            return token.encode("utf-8")


def find_tokenizer(directory: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer beside the model; None for a GGUF artifact where its own vocabulary has to do.

    That is a file that comes alone, and any where `tokenizers` is not installed. Raises as `read_tokenizer`.
    """
    if directory.is_file() or (manifest.format == "gguf" and "tokenizer.json" not in manifest.files):
        return None
    try:
        return read_tokenizer(artifact_file(directory, manifest, "tokenizer.json"))
    except DependencyError:
        if manifest.format == "gguf":
            return None
        raise


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`; raises DependencyError without tokenizers, ArtifactError for a file that is none."""
    try:
        import tokenizers
        from tokenizers import decoders
    except ImportError:
        raise missing_package("tokenizers", "ort", "reading text into tokens") from None
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # the Rust extension raises a bare Exception, and panics beside Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        text = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{path}: tokenizers {tokenizers.__version__} cannot read it: {text}",
            hint="check it with `edgeship-runtime verify`; a newer `tokenizers` may know a newer file",
        ) from None
    return Tokenizer(inner, byte_level=isinstance(inner.decoder, decoders.ByteLevel))


def _byte_alphabet() -> dict[str, int]:
    """Letter to byte as GPT-2's encoder.py `bytes_to_unicode` has it: printable Latin-1 is itself, the rest follow."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in set(plain)]
    letters.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return letters


_BYTE_OF = _byte_alphabet()
