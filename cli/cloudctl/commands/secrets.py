"""Make and list the site's secrets; no value is ever shown."""

from __future__ import annotations

from pathlib import Path

import click

from cloudctl.console import Console, output_option
from cloudctl.site import vault
from cloudctl.site.load import SECRETS
from cloudctl.site.names import secret_names
from cloudctl.site.schema import site_definitions
from cloudctl.site.secrets import generate as generate_secrets


@click.group(name="secrets")
def command() -> None:
    """Make and list the site's secrets; no value is ever shown.

    They are in secrets.yml, encrypted by ansible-vault. The password comes from SITE/.vault-password or from
    the file named by ANSIBLE_VAULT_PASSWORD_FILE (an executable file is run).
    """


@command.command()
@click.option(
    "--renew-certificate",
    is_flag=True,
    help="Make the certificate of the virtual addresses anew, though it is good.",
)
@output_option
@click.pass_obj
def generate(path: Path, renew_certificate: bool, output: str) -> None:
    """Make the secrets that are missing; what is there is kept.

    The certificate is made anew when the virtual addresses have changed or when it ends within 30 days.
    """
    console = Console(output)
    done = generate_secrets(path, renew_certificate=renew_certificate)

    def text() -> None:
        if done.password_made is not None:
            console.line(
                f"made {done.password_made}: keep a copy in a safe place, nothing can be read without it"
            )
        for name, reason in done.renewed.items():
            console.line(f"made {name} anew ({reason})")
        console.line(f"{len(done.made)} secrets made, {done.kept} kept")

    console.result(
        {
            "made": list(done.made),
            "renewed": dict(done.renewed),
            "kept": done.kept,
            "password_made": str(done.password_made) if done.password_made else None,
        },
        text,
    )


@command.command(name="list")
@output_option
@click.pass_obj
def list_(path: Path, output: str) -> None:
    """List the secrets' names, kinds and purposes."""
    console = Console(output)
    wanted = secret_names(site_definitions(path))
    file = path / SECRETS
    present = vault.open_secrets(file) if file.exists() else {}
    rows = [
        (name, secret.kind, "yes" if name in present else "missing", secret.description)
        for name, secret in wanted.items()
    ]
    rows += [
        (name, "own", "yes", "not used by any service") for name in sorted(present.keys() - wanted.keys())
    ]
    keys = ("name", "kind", "present", "description")
    console.result(
        [dict(zip(keys, (row[0], row[1], row[2] == "yes", row[3]), strict=True)) for row in rows],
        lambda: console.table(("NAME", "KIND", "THERE", "PURPOSE"), rows),
    )
