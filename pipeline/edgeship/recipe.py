"""A recipe: which checkpoint becomes which artifact, its sections as frozen models.

What a value may be stands in them and nowhere else: validation, the messages of `recipe_file.py`, the JSON Schema
(`schema.py`) and the reference in the README (`docs.py`) read it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edgeship.budget import Mixed
from edgeship.calibration import Calibration
from edgeship.encodings import Encoding, WeightType, encoding_of
from edgeship.errors import UsageError
from edgeship.exporter import ExporterName, Olive, Optimum, fields_of, given, refuse_misplaced
from edgeship.fields import did_you_mean, found
from edgeship.quant.mixes import MixName
from edgeship.yaml_model import NAME, AsTuple, Distinct, Frozen, Line
from edgeship.yaml_source import Place, Places

Host = Literal["huggingface", "modelscope", "local"]
Format = Literal["onnx", "gguf"]
Algorithm = Literal["rtn", "rtn-search", "gptq"]

REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"


class Source(Frozen):
    """Where the checkpoint comes from."""

    host: Host = Field(
        default="huggingface", description="who serves the checkpoint; `local` is a directory on this machine"
    )
    repo: str = Field(
        pattern=REPO,
        max_length=200,
        description="`owner/name` on the host; for a local directory the model it holds (it becomes `base_model`)",
    )
    revision: Annotated[Line, Field(min_length=1)] = Field(
        default="main", description="branch, tag or commit; the commit it stood for is recorded in the artifact"
    )
    path: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description="the directory, when host is `local`: absolute, or relative to the recipe's file; "
        "`builtin` is the tiny checkpoint inside edgeship",
    )

    @model_validator(mode="after")
    def _path_when_local(self) -> Self:
        if self.host == "local" and self.path is None:
            raise PydanticCustomError("missing_path", "missing key 'path': a local source needs its directory")
        if self.host != "local" and self.path is not None:
            text = "'path' goes with `host: local` only; remove it, or set the host"
            raise PydanticCustomError("path_not_local", text, {"key": "path"})
        return self


class Scheme(Frozen):
    """How weights are stored, by the part of the model they belong to; norms and biases stay float32."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["mix"], "properties": {"mix": {"type": "string"}}},
            "then": {"maxProperties": 1},
        }
    )

    body: WeightType = Field(
        default="int4",
        description="the linear layers of attention and feed-forward; all but int4, int8, float16 and float32 are "
        "ggml's own and need formats: [gguf] (q4_0 and q8_0 are int4 and int8 in groups of 32)",
    )
    embeddings: WeightType = Field(default="int8", description="the token embedding table")
    head: WeightType = Field(
        default="int8",
        description="the output projection; a tied model stores it and the embeddings once if both types agree",
    )
    group_size: Literal[32, 64, 128] = Field(
        default=32, description="input elements that share a scale, for int4 and int8; GGUF can store 32 only"
    )
    algorithm: Algorithm = Field(
        default="rtn",
        description="how int4 and int8 weights are rounded: to nearest; with scales searched for the least error that "
        "`calibration` text shows; or, besides, so that later columns make up for the error of earlier ones (GPTQ)",
    )
    mix: MixName | None = Field(
        default=None,
        description="llama-quantize's name of a mixture that chooses the type of every tensor; it stands alone, and "
        "laid over a base by `extends` it replaces the whole scheme",
    )
    mixed: Mixed | None = Field(
        default=None,
        description="a type for every tensor, chosen for the least loss on the calibration text within a budget; in "
        "place of body, embeddings and head, as a mix is: laid over a base by `extends` it replaces those, they "
        "replace it, and group_size and algorithm stay",
    )

    @model_validator(mode="after")
    def _mix_alone(self) -> Self:
        others = sorted(self.model_fields_set - {"mix"})
        if self.mix is not None and others:
            text = "a mix chooses the type of every tensor; remove {others}, or the mix"
            raise PydanticCustomError("mix_alone", text, {"key": "mix", "others": " and ".join(others)})
        others = sorted(self.model_fields_set & {"body", "embeddings", "head"})
        if self.mixed is not None and others:
            text = "a mixed scheme chooses the type of every tensor; remove {others}, or mixed"
            raise PydanticCustomError("mix_alone", text, {"key": "mixed", "others": " and ".join(others)})
        return self

    @model_serializer(mode="wrap")
    def _whole_or_mix(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = whole(self)
        if self.mix:
            return {"mix": self.mix}
        silent = {"mix", *(("body", "embeddings", "head") if self.mixed else ("mixed",))}
        return {k: v for k, v in values.items() if k not in silent}

    @property
    def calibrates(self) -> bool:
        """Whether calibration text has a say in how weights are stored."""
        types = () if self.mix or self.mixed else (self.body, self.embeddings, self.head)
        by_ggml = any(e.quantized and not e.on_grid for e in (encoding_of(t, self.group_size) for t in types))
        return self.algorithm != "rtn" or self.mixed is not None or self.mix is not None or by_ggml

    def encoding(self, part: Literal["body", "embeddings", "head"]) -> Encoding:
        """The encoding of a part's weights, in a scheme without a mix."""
        assert self.mix is None, "a mix chooses by tensor"
        if self.mixed is not None:  # until a choice is made
            return encoding_of(self.mixed.types[0], self.group_size)
        kinds: dict[str, WeightType] = {"body": self.body, "embeddings": self.embeddings, "head": self.head}
        return encoding_of(kinds[part], self.group_size)


class RopeScaling(Frozen):
    """Rotary embedding scaled for longer context, in place of what config.json says."""

    type: Literal["yarn"] = Field(description="the method: YaRN, arXiv:2309.00071")
    factor: float = Field(gt=1, le=64, description="how many times longer the context becomes")
    original_max_position_embeddings: int = Field(
        ge=1, le=1 << 20, description="the context length the model was trained with"
    )

    def block(self) -> dict[str, Any]:
        """The scaling as config.json's `rope_scaling` writes it."""
        return {
            "rope_type": self.type,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }


class Sampling(Frozen):
    """Defaults the runtime samples with when the caller says nothing; each one at its default has no effect."""

    temperature: float = Field(default=1.0, ge=0, le=10, description="divides the logits; 0 takes the likeliest token")
    top_k: int = Field(default=0, ge=0, le=1 << 20, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="keep the likeliest tokens that reach this probability together"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="keep tokens at least this likely relative to the likeliest"
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, description="divides the logit of a token seen before")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="subtracted from the logit of a token seen before"
    )


class Accept(Frozen):
    """Limits the artifact must stay under; one that misses them is not sealed."""

    size_mb: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="size of the artifact on disk, in MB of 10^6 bytes: all its files, each format by itself",
    )
    kl_mean: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="mean KL divergence from the float model, in nats, over a text in windows of 256 tokens, by a "
        "float32 pass over both models' weights",
    )
    top1: float | None = Field(
        default=None, gt=0, le=1, description="share of positions where the float model's likeliest token is the same"
    )
    text: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description="plain text that `kl_mean` and `top1` hold for: a file, absolute or relative to the recipe's; "
        "else the help pages that Python brings",
    )
    tokens: int = Field(default=2048, ge=64, le=1 << 20, description="tokens of that text")
    repair: bool = Field(
        default=False,
        description="raise the tensors that cost most to 8 bits until the artifact is accepted, where it is not",
    )

    cosine: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="with exporter: optimum, least cosine similarity to the float model's of any vector, or of a "
        "classifier's logits of all texts together",
    )

    @property
    def fidelity(self) -> bool:
        """Whether a limit on what the artifact lost is set."""
        return self.kl_mean is not None or self.top1 is not None

    @model_validator(mode="after")
    def _with_a_limit(self) -> Self:
        alone = [k for k in ("text", "tokens", "repair") if getattr(self, k) != type(self).model_fields[k].default]
        if alone and not self.fidelity:
            text = "'{key}' goes with kl_mean or top1 only; set one, or remove it"
            raise PydanticCustomError("no_limit", text, {"key": alone[0]})
        return self


class Recipe(Frozen):
    """One checkpoint, made into one artifact per format."""

    name: str = Field(pattern=NAME, description="the file's name without .yaml; the artifact's directory has it too")
    description: Line = Field(default="", description="one line that says what the artifact is")
    source: Source = Field(description="where the checkpoint comes from")
    model: dict[str, Any] | None = Field(
        default=None,
        description="fields of the checkpoint's config.json, so that `plan` downloads nothing; `export` checks them",
    )
    exporter: ExporterName = Field(
        default="native",
        description="who exports: `native`, our own; `optimum`, encoders; `olive`, a workflow of Olive's passes",
    )
    optimum: Optimum | None = Field(default=None, description="with exporter: optimum")
    olive: Olive | None = Field(default=None, description="with exporter: olive")
    scheme: Scheme = Field(default=Scheme(), description="how each part of the model is stored")
    formats: Annotated[tuple[Format, ...], AsTuple, Distinct] = Field(
        default=("onnx",), min_length=1, description="the formats to write"
    )
    imatrix: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description="an importance matrix, as llama.cpp's llama-imatrix writes it (GGUF), that guides the rounding of "
        "4 bits and less: a file, absolute or relative to the recipe's",
    )
    calibration: Calibration | None = Field(
        default=None, description="text that shows what the model's inputs look like, for a calibrated algorithm"
    )
    adapters: Annotated[tuple[Annotated[Line, Field(min_length=1)], ...], AsTuple, Distinct] = Field(
        default=(),
        description="LoRA adapters merged into the weights, in this order: directories that PEFT saved (safetensors), "
        "absolute or relative to the recipe's file",
    )
    context: int = Field(
        default=4096,
        ge=16,
        le=1 << 20,
        description="tokens the KV cache holds at run time unless the caller says otherwise",
    )
    logits: Literal["last", "all"] = Field(
        default="last",
        description="positions the model answers logits for: the last of each sequence, or all (perplexity)",
    )
    rope_scaling: RopeScaling | None = Field(default=None, description="scales the rotary embedding for longer context")
    sampling: Sampling = Field(default=Sampling(), description="default sampling parameters")
    accept: Accept = Field(default=Accept(), description="limits the artifact must stay under")

    _places: Places = PrivateAttr(default=Places())

    @model_validator(mode="after")
    def _of_the_exporter(self, info: ValidationInfo) -> Self:
        inherited = info.context or {}  # of a file that extends another
        fields, limits = given(self, inherited.get("recipe", ())), given(self.accept, inherited.get("accept", ()))
        refuse_misplaced(self.exporter, fields, limits)
        return self

    @property
    def guided(self) -> bool:
        """Whether ggml's quantizers are told how much each input matters."""
        return self.imatrix is not None or self.calibration is not None

    def placed(self, places: Places) -> Self:
        """The recipe with the places of its keys in the file it comes from."""
        recipe = self.model_copy()
        recipe._places = places
        return recipe

    def place(self, key: str) -> Place | None:
        """Where `scheme.algorithm`, else the section around it, stands in the file; None for neither, or no file."""
        return self._places.find(tuple(key.split(".")))

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON values, for the manifest; without directories, which mean nothing elsewhere."""
        values = self.model_dump(mode="json", exclude={"source": {"path"}})
        if self.exporter != "native":
            return fields_of(self.exporter, values)
        values = {key: value for key, value in values.items() if key not in ("exporter", "optimum", "olive")}
        names = [Path(adapter).name for adapter in self.adapters]
        values["calibration"] = self.calibration and self.calibration.resolved()
        values["accept"]["text"] = self.accept.text and Path(self.accept.text).name
        return values | {"imatrix": self.imatrix and Path(self.imatrix).name, "adapters": names}


def chosen_formats(recipe: Recipe, asked: Sequence[str]) -> tuple[str, ...]:
    """The formats to write: those asked for, of the recipe's, or all of these. Raises UsageError at another one."""
    for name in asked:
        if name not in recipe.formats:
            text = f"--format: expected one of {', '.join(recipe.formats)}, found {found(name)}"
            told = "the recipe's formats" if recipe.exporter == "native" else f"exporter: {recipe.exporter} writes"
            raise UsageError(
                f"{text}{did_you_mean(name, recipe.formats)}.", hint=f"{told}: {', '.join(recipe.formats)}"
            )
    return tuple(dict.fromkeys(asked)) or recipe.formats


def with_algorithm(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with another `scheme.algorithm`, and text to calibrate on as far as that looks at some.

    Raises UsageError where it would have no effect.
    """
    if name is None or (name == recipe.scheme.algorithm and recipe.exporter == "native"):
        return recipe
    known = get_args(Algorithm)
    if name not in known:
        text = f"--algorithm: expected one of {', '.join(known)}, found {found(name)}{did_you_mean(name, known)}."
        raise UsageError(text, hint="it takes the place of the recipe's scheme.algorithm")
    if recipe.exporter != "native" or recipe.scheme.mix is not None:
        what = f"exporter: {recipe.exporter}" if recipe.exporter != "native" else f"scheme.mix: {recipe.scheme.mix}"
        text = f"--algorithm {name}: expected a recipe of int4 or int8 weights, found {what}, which has its own."
        raise UsageError(text, hint="leave it out")
    scheme = recipe.scheme.model_copy(update={"algorithm": name})
    calibration = (recipe.calibration or Calibration()) if scheme.calibrates else None
    places = recipe._places.without(("scheme", "algorithm"))  # the file says another
    return recipe.model_copy(update={"scheme": scheme, "calibration": calibration}).placed(places)
