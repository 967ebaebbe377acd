"""Check the site's files without connecting to anything."""

from __future__ import annotations

from pathlib import Path

import click

from cloudctl.console import Console, output_option
from cloudctl.errors import MultiError
from cloudctl.site.validate import describe, validate_site


@click.command(name="validate")
@output_option
@click.option(
    "--no-secrets", is_flag=True, help="Leave the encrypted secrets out (no vault password needed)."
)
@click.pass_obj
def command(path: Path, output: str, no_secrets: bool) -> int:
    """Check the site's files without connecting to anything.

    Every error is shown at once, with its file and line. Exit code 0: valid; 3: not valid.
    """
    console = Console(output)
    site, errors = validate_site(path, with_secrets=not no_secrets)
    if console.json:
        console.result(
            {
                "valid": not errors,
                "site": site.name if site else None,
                "path": str(path),
                "nodes": len(site.nodes) if site else 0,
                "networks": len(site.networks) if site else 0,
                "errors": [error.as_dict() for error in errors],
            }
        )
        return errors[0].exit_code if errors else 0
    if errors:
        raise errors[0] if len(errors) == 1 else MultiError(errors)
    assert site is not None
    console.line(describe(site))
    return 0
