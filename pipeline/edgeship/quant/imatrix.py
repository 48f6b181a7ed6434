"""Importance matrices: how much each input of a matrix matters, as llama.cpp's `llama-imatrix` measures it.

The file is a GGUF (tools/imatrix/README.md in llama.cpp): for every matrix `NAME.in_sum2`, float32 [k], the sums of
the squared inputs, and `NAME.counts`, float32 [1], how many were summed; their quotient is the importance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Role
from edgeship.errors import PlanError, RecipeError
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.gguf import Header, read_header

Importance = NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
LISTED = 10  # names in a message


def read_imatrix(path: Path) -> dict[str, Importance]:
    """The importance of every input of every matrix, float32 `[k]` each, by its name in llama.cpp.

    Raises RecipeError where the file is missing, damaged, or something else.
    """
    try:
        header = read_header(path)
        kind = header.metadata.get("general.type")
        if kind != "imatrix":
            raise _NotImatrixError(f"its general.type is {kind!r}")
        names = sorted(name.removesuffix(SUMS) for name in header.tensors if name.endswith(SUMS))
        if not names:
            raise _NotImatrixError("it holds no sums of inputs")
        return {name: _importance(header, name) for name in names}
    except (EdgeshipRuntimeError, OSError, _NotImatrixError) as error:
        reason = error.message.removeprefix(f"{path}: ") if isinstance(error, EdgeshipRuntimeError) else str(error)
        raise RecipeError(
            f"{path}: expected an importance matrix as llama-imatrix writes it (GGUF), but: {reason}.",
            hint="an old .dat file becomes one with `llama-imatrix --in-file old.dat -o new.gguf`",
        ) from None


class _NotImatrixError(Exception):
    """Why a GGUF file is no importance matrix."""


def _importance(header: Header, name: str) -> Importance:
    sums, counts = _floats(header, name + SUMS), _floats(header, name + COUNTS)
    if len(counts) != 1:
        raise _NotImatrixError(f"{name} has {len(counts)} counts, as experts have")
    if not (np.isfinite(sums).all() and np.isfinite(counts[0]) and (sums >= 0).all() and counts[0] >= 0):
        raise _NotImatrixError(f"{name} holds NaN, infinity or a negative number")
    return sums / counts[0] if counts[0] > 0 else np.ones_like(sums)  # as llama-quantize reads it


def _floats(header: Header, name: str) -> Importance:
    tensor = header.tensors.get(name)
    if tensor is None or tensor.type != "F32":
        raise _NotImatrixError(f"{name} is {'missing' if tensor is None else tensor.type + ', not F32'}")
    return np.fromfile(header.path, "<f4", tensor.elements, offset=header.data + tensor.offset).astype(np.float32)


def write_imatrix(
    path: Path, matrices: Mapping[str, tuple[NDArray[np.float64], int]], *, dataset: str, chunk: int
) -> None:
    """Write a file that llama-quantize and `read_imatrix` take: by name in llama.cpp, mean squares `[k]` and tokens.

    `dataset` is what the text is called and `chunk` the tokens of a sequence of it. Written whole or not at all.
    """
    from gguf import GGUFWriter  # not at the top: reading takes no package

    half = path.with_name(f".{path.name}.half")
    writer = GGUFWriter(half, "imatrix")
    writer.kv_data[0].pop("general.architecture")  # llama-imatrix writes none
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", -(-max(n for _, n in matrices.values()) // chunk))
    writer.add_uint32("imatrix.chunk_size", chunk)
    for name, (moments, count) in sorted(matrices.items()):
        writer.add_tensor(name + SUMS, (moments * count).astype(np.float32)[None])
        writer.add_tensor(name + COUNTS, np.full((1, 1), count, np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def by_role(
    matrix: Mapping[str, Importance], roles: Iterable[Role], names: Mapping[str, str], required: Collection[str] = ()
) -> dict[str, Importance]:
    """The importance of each role that has one, float32 `[columns]` by role key.

    `names` gives llama.cpp's name of a role key; `required` are the keys of tensors that are garbage without one.
    Embedding and head may have none (llama-imatrix looks at neither unless asked), a matrix of a block may not: the
    file would be of a smaller model. Raises PlanError listing what is missing, and entries of another model: names
    that no role has, and wrong lengths.
    """
    known = {names[r.key]: r for r in roles if r.part != "float"}
    problems = [f"{name}: no weight of the model is called so" for name in matrix if name not in known]
    out = {}
    for name, role in known.items():
        if name not in matrix:
            problems += [f"{name}: missing"] if role.part == "body" or role.key in required else []
            continue
        out[role.key] = matrix[name]
        if len(matrix[name]) != role.shape[-1]:
            problems.append(f"{name}: {len(matrix[name])} values for {role.shape[-1]} inputs")
        elif not matrix[name].any():
            problems.append(f"{name}: all zero, which would erase the weight")
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems[:LISTED])
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise PlanError(
            f"imatrix: the importance matrix is not of this model; nothing was written.\n{listed}{more}",
            hint="make it from this very checkpoint: llama-imatrix -m MODEL.gguf -f TEXT -o imatrix.gguf",
        )
    return out
