"""The command that installs other exporters, and what `plan` says of their recipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgeship.recipe import Recipe

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object; errors too.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("install-exporter", epilog="Example: edgeship install-exporter optimum")(install_exporter)


def install_exporter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="optimum or olive.")],
    as_json: Json = False,
) -> None:
    """Install Optimum or Olive into an environment of its own: pinned versions, 1 to 2 GB, once.

    It lies under ~/.cache/edgeship/exporters, or where EDGESHIP_EXPORTERS says.
    """
    from edgeship import show
    from edgeship.exporters import environment
    from edgeship.progress import progress_for

    made = environment.install(name, progress_for(quiet=as_json))
    if as_json:
        print(json.dumps({"exporter": made.name, "environment": str(made.directory)}, indent=2))
    else:
        show.show([show.Table("", (), [("exporter", made.name), ("environment", str(made.directory))])])


def plan(recipe: Recipe, *, as_json: bool) -> None:
    """Say what an export through another exporter would do, after its own check of the options."""
    from edgeship import exporters, show
    from edgeship.progress import progress_for

    environment = exporters.check(recipe, progress_for(quiet=as_json))
    options: dict[str, Any] = recipe.resolved()[recipe.exporter]
    if as_json:
        body = {"recipe": recipe.resolved(), "environment": str(environment.directory), "conflicts": []}
        print(json.dumps(body, indent=2))
        return
    rows = [("recipe", recipe.name), ("exporter", recipe.exporter), ("source", recipe.source.repo)]
    rows += [(key, json.dumps(value)) for key, value in options.items() if value not in (None, [])]
    show.show([show.Table("", (), [*rows, ("environment", str(environment.directory))])])


def example(recipe: Recipe, artifact: object) -> str:
    """A command that tries the artifact of a recipe."""
    from edgeship.exporter import Optimum

    if recipe.exporter != "optimum":
        return f'edgeship-runtime run {artifact} "Hello"'
    task = (recipe.optimum or Optimum()).task
    if task == "text2text-generation":
        return f"edgeship-runtime verify {artifact} (what runs it: the README.md there)"
    return f'edgeship-runtime {"embed" if task == "feature-extraction" else "classify"} {artifact} "Hello"'
