"""``cloudctl image``: build the container images and the guest image, list them, pin them for a site."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from cloudctl.errors import UsageError
from cloudctl.images.builder import DEFAULT_CACHE, Builder, Records, summary, write_lock
from cloudctl.images.definition import load_catalogue
from cloudctl.images.guest import build_guest
from cloudctl.paths import data_root

_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_CACHE,
    show_default=True,
    help="Directory for packages, logs and the registry's storage.",
)


@click.group(name="image")
def command() -> None:
    """Build, list and pin the container images."""


@command.command()
@click.argument("names", nargs=-1)
@click.option("--jobs", type=click.IntRange(min=1), help="Images built at once (default: one per processor).")
@_cache
@click.option(
    "--registry", metavar="ADDR", help="host:port of a registry to push to (default: one is started)."
)
@click.option("--rebuild", is_flag=True, help="Build what exists too, with the newest packages.")
@click.option("--no-push", is_flag=True, help="Only build.")
def build(
    names: tuple[str, ...], jobs: int | None, cache: Path, registry: str | None, rebuild: bool, no_push: bool
) -> None:
    """Build images (default: all) and push them; `guest` is the test guest's disk image.

    What has not changed since it was built is not built again.
    """
    catalogue = load_catalogue(data_root() / "images")
    builder = Builder(
        catalogue,
        cache,
        jobs=jobs,
        registry_address=registry,
        rebuild=rebuild,
        report=lambda line: click.echo(line),
    )
    started = time.monotonic()
    containers = [name for name in names if name != "guest"]
    if containers or not names:
        outcomes = builder.build(containers, push=not no_push)
        counts = summary(outcomes, time.monotonic() - started)
        click.echo(f"{counts['built']} images built, {counts['reused']} unchanged, in {counts['seconds']} s")
    if not names or "guest" in names:
        click.echo(f"guest image: {build_guest(builder, data_root() / 'guest', cache)}")


@command.command(name="list")
@_cache
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_images(cache: Path, output: str) -> None:
    """List the images with their state, size in the registry and age."""
    catalogue = load_catalogue(data_root() / "images")
    keys = catalogue.keys()
    records = Records(cache)
    rows = []
    for image in sorted(catalogue.images.values(), key=lambda image: image.name):
        if not image.publish:
            continue
        record = records.read(image.name)
        state = "missing" if record is None else "current" if record.key == keys[image.name] else "outdated"
        rows.append(
            {
                "name": image.name,
                "state": state,
                "repository": image.repository,
                "tag": record.key if record else None,
                "digest": record.digest if record else None,
                "size": record.size if record else None,
                "age_seconds": int(time.time() - record.created) if record else None,
            }
        )
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'NAME':<26}{'STATE':<10}{'TAG':<18}{'SIZE':>9}  AGE")
    for row in rows:
        size, age = row["size"], row["age_seconds"]
        size_text = f"{size / 1e6:.0f} MB" if isinstance(size, int) else "-"
        age_text = _age(age) if isinstance(age, int) else "-"
        click.echo(f"{row['name']:<26}{row['state']:<10}{row['tag'] or '-':<18}{size_text:>9}  {age_text}")


@command.command()
@_cache
@click.option(
    "--site",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The site's directory to write into.",
)
@click.option(
    "--registry",
    metavar="ADDR",
    help="host:port at which the site's nodes reach the registry (default: its `registry.address`).",
)
@click.pass_context
def lock(context: click.Context, cache: Path, site: Path | None, registry: str | None) -> None:
    """Write the site's images.lock.json: every image pinned by its digest."""
    directory = site or context.obj
    write_lock(
        directory / "images.lock.json",
        registry or _site_registry(directory),
        catalogue=load_catalogue(data_root() / "images"),
        cache=cache,
    )
    click.echo(f"{directory / 'images.lock.json'} written")


def _site_registry(directory: Path) -> str:
    """Return `registry.address` of the site's settings."""
    from cloudctl.site import load_site

    address = load_site(directory, with_secrets=False).get("registry.address")
    if not isinstance(address, str) or not address:
        raise UsageError(
            "registry-address-missing",
            "the site's settings say no registry.address",
            where=str(directory / "settings.yml"),
            hint="set it, or give --registry host:port",
        )
    return address


def _age(seconds: int) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
