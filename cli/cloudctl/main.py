"""The ``cloudctl`` command: finds the commands, and is the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from pathlib import Path

import click

from cloudctl import __version__, commands
from cloudctl.errors import INTERNAL, INTERRUPTED, CloudctlError


class _Commands(click.Group):
    """Finds ``commands/<verb>.py`` when the verb is asked for, so that start-up loads one command only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"cloudctl.commands.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@click.option(
    "--site",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="CLOUDCTL_SITE",
    help="The site's directory (default: $CLOUDCTL_SITE, else the current directory).",
)
@click.pass_context
def cli(ctx: click.Context, site: Path | None) -> None:
    """Build, grow, run, shut down and restart a private cloud of containerised OpenStack and Ceph."""
    ctx.obj = (site or Path.cwd()).absolute()


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


LOCAL_COMMANDS = frozenset({"image", "init", "lab", "runs", "secrets", "validate"})
"""Commands that need no node: they run where they are typed, on a lab's site too."""


def _hand_on(argv: list[str]) -> int | None:
    """Run a cloud command for a lab's site inside its deploy node: only there are its networks.

    Returns:
        The inner command's exit code, or None where the command runs here.
    """
    context = cli.make_context("cloudctl", list(argv), resilient_parsing=True)
    # click keeps a group's first word apart from the rest.
    words = [*getattr(context, "_protected_args", []), *context.args]
    site: Path = (context.params.get("site") or Path.cwd()).absolute()
    if not words or words[0] in LOCAL_COMMANDS or {"-h", "--help"} & set(words[:3]):
        return None
    from cloudctl.lab import remote

    if not remote.is_lab_site(site) or remote.inside_deploy_node():
        return None
    from cloudctl.lab import powercontrol

    if name := powercontrol.lab_of(site):
        powercontrol.ensure(name)
    return remote.reexec(["--site", str(site), *words], site)


def run(argv: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit code (see ``cloudctl.errors``).
    """
    try:
        handed_on = _hand_on(argv)
        if handed_on is not None:
            return handed_on
        result = cli.main(args=argv, prog_name="cloudctl", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CloudctlError as error:
        click.echo(error.render(), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: running the same command again goes on", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return INTERNAL
    except Exception as error:
        if os.environ.get("CLOUDCTL_DEBUG"):
            traceback.print_exc()
        click.echo(
            f"error[internal]: {type(error).__name__}: {error}\n"
            "  try: set CLOUDCTL_DEBUG=1 for the traceback, and report it",
            err=True,
        )
        return INTERNAL
