"""The command `prefix`: what a model makes of the opening of every conversation, in a file beside the artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship_runtime.commands import engine_options
from edgeship_runtime.console import print_json, safe
from edgeship_runtime.errors import UsageError
from edgeship_runtime.prefix import WORTH, save_model_prefix, shipped_path
from edgeship_runtime.prefix_files import common
from edgeship_runtime.talk.asking import Opening, read_opening

if TYPE_CHECKING:
    from edgeship_runtime.model import Model


def prefix(args: argparse.Namespace) -> int:
    """Evaluate the opening and write its state; raises UsageError for one too short to be worth it."""
    opening = read_opening(args)
    from edgeship_runtime.loading import load

    with load(args.artifact, context=args.context, threads=args.threads, **engine_options(args)) as model:
        tokens = opening_tokens(model, opening)
        if len(tokens) < WORTH:
            raise UsageError(
                f"all conversations begin with the same {len(tokens)} tokens; fewer than {WORTH} are not worth a file",
                hint="give what they have in common: --system, --system-file, --preset, --tools",
            )
        model.generate(tokens, max_tokens=1)  # one token is chosen and not evaluated
        path = shipped_path(model.directory) if args.out is None else Path(args.out)
        saved = save_model_prefix(model, path)
    if args.json:
        print_json({"path": str(path), "tokens": len(saved.tokens), "bytes": len(saved.state)})
    else:
        where = "it is used from now on" if args.out is None else f"use it with --prefix {path}"
        print(safe(f"{path}: {len(saved.tokens)} tokens, {len(saved.state) / 1e6:.1f} MB; {where}"))
    return 0


def opening_tokens(model: Model, opening: Opening) -> list[int]:
    """The tokens that every conversation begins with, whatever its first message is."""
    first, second = (
        model.encode(
            [*opening.messages, {"role": "user", "content": text}],
            tools=opening.tools,
            enable_thinking=opening.enable_thinking,
        )
        for text in ("a", "1 b")
    )
    return first[: common(first, second)]
