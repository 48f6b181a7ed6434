"""Text to token ids and back by llama.cpp, with the vocabulary that is inside a GGUF file.

For files that come alone, and where `tokenizers` is not installed. llama.cpp does not normalize Unicode and GGUF does
not say whether the checkpoint's tokenizer did: it is done here for the vocabularies that are known to need it.
"""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Mapping, Sequence

from edgeship_runtime.decode import ByteDetokenizer, Detokenizer
from edgeship_runtime.engines.llama_library import LoadedModel, library
from edgeship_runtime.errors import UsageError

_SENTENCEPIECE = 1  # LLAMA_VOCAB_TYPE_SPM
_NFC = ("qwen2",)  # by `tokenizer.ggml.pre`: the normalizer of every Qwen since the second
_MAX_TEXT = (1 << 31) - 16


class LlamaTokenizer:
    """What `tokens.Tokenizer` does, for the vocabulary of a loaded model; safe to use from several threads."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._lib = library()
        self._bytes: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)
        self.vocab_size = model.vocab_size
        with model:
            kind = self._lib.llama_vocab_type(model.vocabulary)
        self._normalizes = model.text("tokenizer.ggml.pre") in _NFC
        # Such a vocabulary puts a space before every text; it is no part of the text.
        self._strips = kind == _SENTENCEPIECE and model.text("tokenizer.ggml.add_space_prefix") != "false"

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; `special` adds what the vocabulary puts around a raw text (a rendered template has it).

        Raises UsageError for text that is not Unicode (half of a surrogate pair), and for 2 GB of it.
        """
        try:
            raw = (unicodedata.normalize("NFC", text) if self._normalizes else text).encode("utf-8")
        except UnicodeError as error:
            raise UsageError(
                f"the text cannot be turned into tokens ({error})", hint="it holds half of a surrogate pair"
            ) from None
        if len(raw) > _MAX_TEXT:
            raise UsageError("the text cannot be turned into tokens: it has more than 2 GB")
        size = len(raw) + 8  # mostly a byte is a token at most, and a few are put around
        with self._model as model:
            while True:
                ids = (self._lib.llama_token * size)()
                count = self._lib.llama_tokenize(model.vocabulary, raw, len(raw), ids, size, special, True)
                if count >= 0 or -count <= size:
                    break
                size = -count  # a space that has no token of its own takes three
        if count < 0 or count > _MAX_TEXT:
            raise UsageError("the text cannot be turned into tokens: llama.cpp refuses it")
        return list(ids[:count])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text = self.detokenizer()
        return "".join(map(text.push, ids)) + text.flush()

    def detokenizer(self) -> Detokenizer:
        """A fresh stream whose joined output equals `decode` of all its tokens."""
        return ByteDetokenizer(_WithoutFirstSpace(self) if self._strips else self.bytes_of)

    def spellings(self) -> list[bytes] | str:
        """Bytes of every token, empty for special ones."""
        return [*map(self.bytes_of, range(self.vocab_size))]

    def bytes_of(self, token: int) -> bytes:
        """Bytes of a token; empty for special and unknown ones."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spelled(token, special=False)
        return found

    def _spelled(self, token: int, *, special: bool) -> bytes:
        if not 0 <= token < self.vocab_size:  # llama.cpp would end the process
            return b""
        with self._model as model:
            while True:
                size = len(self._buffer)
                count = self._lib.llama_token_to_piece(model.vocabulary, token, self._buffer, size, 0, special)
                if count >= 0:
                    return self._buffer.raw[:count]
                self._buffer = ctypes.create_string_buffer(-count)

    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those the file names, and those llama.cpp knows by their text."""
        is_end = self._lib.llama_vocab_is_eog
        with self._model as model:
            return tuple(token for token in range(self.vocab_size) if is_end(model.vocabulary, token))

    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the tokens that chat templates are given by name."""
        keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        # Not as llama.cpp has them: for a file that names none, it makes up some.
        ids = {name: self._model.text(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
        found = {name: self._spelled(int(token), special=True) for name, token in ids.items() if token}
        return {name: text.decode("utf-8", "replace") for name, text in found.items() if text}


class _WithoutFirstSpace:
    """Bytes of tokens, less one space at the beginning of the text."""

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._begun = False

    def __call__(self, token: int) -> bytes:
        found = self._bytes_of(token)
        if self._begun or not found:
            return found
        self._begun = True
        return found.removeprefix(b" ")
