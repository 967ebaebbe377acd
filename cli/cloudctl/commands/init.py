"""Make a new site's directory from flags or answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cloudctl.console import Console, output_option
from cloudctl.errors import UsageError
from cloudctl.site.create import QUESTIONS, Question, create_site


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for question in reversed(QUESTIONS):
        function = click.option(
            f"--{question.key}", metavar="VALUE", help=f"{question.prompt} (e.g. {question.default})."
        )(function)
    return function


@click.command(name="init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--defaults", is_flag=True, help="Take the documented value for every flag that is not given.")
@_options
@output_option
def command(directory: Path, defaults: bool, output: str, **given: str | None) -> None:
    """Make a new site in DIRECTORY: inventory, networks, settings and an SSH key.

    On a terminal, what no flag says is asked for. Lists of addresses may have ranges:
    10.10.10.11-13,10.10.10.20.
    """
    console = Console(output)
    answers: dict[str, Any] = {}
    missing: list[str] = []
    for question in QUESTIONS:
        value = given[question.key.replace("-", "_")]
        if value is not None or defaults:
            answers[question.key] = _parse(question, question.default if value is None else value)
        elif sys.stdin.isatty():
            answers[question.key] = _ask(question)
        else:
            missing.append(f"--{question.key}")
    if missing:
        raise UsageError(
            "answers-missing",
            f"not given: {', '.join(missing)}",
            hint="give them, add --defaults, or run on a terminal to be asked",
        )
    files = create_site(directory, answers)
    path = directory.absolute()

    def text() -> None:
        console.line(f"made the site {answers['name']} in {path}")
        console.line("next:")
        console.line(f"  export CLOUDCTL_SITE={path}")
        console.line("  cloudctl secrets generate        # makes the passwords, keys and certificates")
        console.line(
            f"  give {path}/ssh/id_ed25519.pub to every node, and pin their host keys in {path}/known_hosts"
        )
        console.line("  cloudctl validate && cloudctl check")

    console.result({"path": str(path), "files": [str(file) for file in files]}, text)


def _parse(question: Question, value: str) -> Any:
    try:
        return question.parse(value)
    except ValueError as error:
        raise UsageError("answer-invalid", f"--{question.key} {error}") from None


def _ask(question: Question) -> Any:
    while True:
        value = click.prompt(question.prompt, default=question.default)
        try:
            return question.parse(str(value))
        except ValueError as error:
            click.echo(f"  {error}")
