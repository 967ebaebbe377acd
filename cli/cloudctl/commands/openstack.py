"""``cloudctl openstack -- ARGS``: the OpenStack client as the cloud's administrator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from cloudctl.errors import CheckFailed
from cloudctl.openrc import client_environment, write_ca
from cloudctl.site.load import load_site


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(site_path: Path, args: tuple[str, ...]) -> int:
    """Run the OpenStack client with the administrator's credentials and the site's CA.

    Everything after ``--`` goes to the client as it is; the exit code is the client's. Without
    arguments the client asks for commands.
    """
    site = load_site(site_path)
    write_ca(site)
    # The client of cloudctl's own environment first: it is the tested one.
    beside = str(Path(sys.executable).parent)
    client = shutil.which("openstack", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if client is None:
        raise CheckFailed(
            "client-missing",
            "the OpenStack client is not installed here",
            hint="pip install python-openstackclient, in the environment that cloudctl runs in",
        )
    # Credentials travel in the environment of the child only: a command line is readable by everybody.
    return subprocess.run([client, *args], env=client_environment(site), check=False).returncode
