"""Build the container images: only what changed, parents first, several at once, each pushed at once.

An image's content address (`Catalogue.keys`) is its tag, locally and in the registry: an image that exists
under that tag anywhere is not built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudctl.errors import ApplyFailed, CloudctlError, ConfigError, MultiError
from cloudctl.images import host
from cloudctl.images.definition import Catalogue, Image
from cloudctl.images.registry import Registry, temporary_registry

DEFAULT_CACHE = Path("/var/cache/cloudctl")
REGISTRY_IMAGE = "registry"
_INDEX_LIFETIME = 3600.0  # seconds that package lists are used before they are fetched again


@dataclass(frozen=True)
class Record:
    """What is known of an image after it was built and pushed."""

    name: str
    key: str
    repository: str
    digest: str = ""
    size: int = 0  # compressed bytes in the registry
    created: float = 0.0  # seconds since the epoch
    build_seconds: float = 0.0
    push_seconds: float = 0.0


class Records:
    """The records in the cache: one JSON file per image, so that parallel builds do not meet."""

    def __init__(self, cache: Path) -> None:
        self.directory = cache / "images"

    def read(self, name: str) -> Record | None:
        """Return the record of `name`, None when there is none (or none that can be read)."""
        try:
            return Record(**json.loads((self.directory / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: Record) -> None:
        """Keep `record`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f".{record.name}.tmp"
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.directory / f"{record.name}.json")


@dataclass(frozen=True)
class Outcome:
    """What was done for one image."""

    name: str
    action: str  # built | reused | failed | skipped
    seconds: float
    error: CloudctlError | None = None


class Builder:
    """Builds and pushes the images of one catalogue.

    Args:
        catalogue: the definitions.
        cache: directory for package files, logs, records and, by default, the registry's storage.
        jobs: images worked on at once (default: one per processor).
        registry_address: "host:port" of a running registry; None starts one over ``cache/registry``.
        rebuild: build even what exists (to get newer packages).
        report: called with each line of progress.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        cache: Path = DEFAULT_CACHE,
        *,
        jobs: int | None = None,
        registry_address: str | None = None,
        rebuild: bool = False,
        report: Callable[[str], None] = print,
    ) -> None:
        self.catalogue = catalogue
        self.cache = cache
        self.jobs = jobs or os.cpu_count() or 1
        self.registry_address = registry_address
        self.rebuild = rebuild
        self.records = Records(cache)
        self.keys = catalogue.keys()
        self._report = report
        self._lock = threading.Lock()
        self._lists_lock = threading.Lock()
        self._registry: Registry | None = None
        self._registry_ready = threading.Event()
        self._stack = contextlib.ExitStack()
        self._started = time.monotonic()
        self._lines: list[str] | None = None

    def local(self, image: Image) -> str:
        """Return the reference of `image` in the local store."""
        return f"localhost/cloudctl/{image.name}:{self.keys[image.name]}"

    def log(self, image: Image) -> Path:
        """Return the path of the build log of `image`."""
        return self.cache / "log" / f"{image.name}.log"

    def build(self, names: Iterable[str] = (), *, push: bool = True) -> list[Outcome]:
        """Build `names` (default: every published image) with their ancestors.

        Args:
            push: also push what is published, and record its digest.

        Returns:
            What was done for each image, in order of completion.

        Raises:
            CheckFailed: a tool or the mirror is missing.
            MultiError: some image failed; the others are built and pushed.
        """
        host.check_tools()
        plan = self.catalogue.order(names)
        if push and self.registry_address is None:
            # first of all: the other images wait for it before they are pushed
            tools = self.catalogue.order([REGISTRY_IMAGE])
            plan = tools + [image for image in plan if image not in tools]
        for directory in ("log", "registry", "images"):
            (self.cache / directory).mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with self._stack:
            self._stack.enter_context(self._exclusive())
            if push:
                self._early_registry()
            return self._run(self._needed(plan) if push else plan, push)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one build at a time use the cache: two would meet in the package directories."""
        with (self.cache / "build.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("waiting for another build to end")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _early_registry(self) -> None:
        """Find or start the registry before anything is built, when that is possible."""
        if self.registry_address:
            self._set_registry(Registry(self.registry_address))
            if not self.registry.ping():
                raise ApplyFailed(
                    "registry-unreachable",
                    "no registry answers at the address given",
                    where=self.registry_address,
                    hint="leave --registry out: a registry is then started for the run",
                )
            return
        image = self.catalogue.get(REGISTRY_IMAGE)
        if not self.rebuild and self._exists_locally(image):
            self._set_registry(self._stack.enter_context(self._temporary(image)))

    @contextlib.contextmanager
    def _temporary(self, image: Image) -> Iterator[Registry]:
        with temporary_registry(self.local(image), self.cache / "registry") as registry:
            yield registry

    def _set_registry(self, registry: Registry) -> None:
        self._registry = registry
        self._registry_ready.set()

    @property
    def registry(self) -> Registry:
        """The registry of this run."""
        assert self._registry is not None
        return self._registry

    def _needed(self, plan: Sequence[Image]) -> list[Image]:
        """Leave out what nobody needs: an unpublished parent whose children are all in the registry."""
        if self._registry is None or self.rebuild:
            return list(plan)
        needed: set[str] = set()
        for image in reversed(plan):
            if image.publish or image.name in needed:
                needed.add(image.name)
                if image.parent and not self._pushed(image):
                    needed.add(image.parent)
        if not self.catalogue.get(REGISTRY_IMAGE).publish:
            needed.add(REGISTRY_IMAGE)
        chosen = [image for image in plan if image.name in needed or not any(i.publish for i in plan)]
        return chosen

    def _pushed(self, image: Image) -> bool:
        return (
            image.publish
            and self._registry is not None
            and self.registry.manifest(image.repository, self.keys[image.name]) is not None
        )

    def _run(self, plan: Sequence[Image], push: bool) -> list[Outcome]:
        weights = critical_weights(self.catalogue.images)
        ranked = sorted(plan, key=lambda image: (image.name != REGISTRY_IMAGE, -weights[image.name]))
        waiting = {image.name: image for image in ranked}
        planned = set(waiting)
        done: dict[str, Outcome] = {}
        running: dict[Future[Outcome], Image] = {}
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(max_workers=self.jobs)
            # after an interruption what runs is finished, and nothing more begun
            stack.callback(pool.shutdown, cancel_futures=True)
            while waiting or running:
                for image in list(waiting.values()):
                    parent = image.parent if image.parent in planned else None
                    if parent and parent not in done:
                        continue
                    del waiting[image.name]
                    if parent and done[parent].action in ("failed", "skipped"):
                        done[image.name] = Outcome(image.name, "skipped", 0.0)
                        self._say(f"skipped {image.name}: {parent} failed")
                        continue
                    running[pool.submit(self._one, image, push)] = image
                if not running:
                    continue
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    image = running.pop(future)
                    done[image.name] = future.result()
                    if image.name == REGISTRY_IMAGE and push and done[image.name].action == "failed":
                        # whoever waits for it has to give up
                        self._registry_ready.set()
        errors = [outcome.error for outcome in done.values() if outcome.error]
        if errors:
            raise MultiError(errors)
        return list(done.values())

    def _one(self, image: Image, push: bool) -> Outcome:
        """Build and push one image; errors become part of the outcome, because other images go on."""
        started = time.monotonic()
        try:
            built = self._ensure(image)
            if push and image.name == REGISTRY_IMAGE and self._registry is None:
                self._set_registry(self._stack.enter_context(self._temporary(image)))
            if push and image.publish:
                self._registry_ready.wait()
                if self._registry is None:
                    raise ApplyFailed("registry-missing", "the registry's own image could not be built")
                self._push(image, built or 0.0)
            return Outcome(image.name, "reused" if built is None else "built", time.monotonic() - started)
        except CloudctlError as error:
            self._say(f"FAILED {image.name} (log: {self.log(image)})")
            return Outcome(image.name, "failed", time.monotonic() - started, error)
        except OSError as error:
            self._say(f"FAILED {image.name}: {error}")
            failure = ApplyFailed("image-build-failed", str(error), where=image.name)
            return Outcome(image.name, "failed", time.monotonic() - started, failure)

    def _ensure(self, image: Image) -> float | None:
        """Make `image` exist locally, or know it is in the registry already.

        Returns:
            Seconds the build took; None when nothing had to be built.
        """
        if not self.rebuild:
            if self._exists_locally(image):
                return None
            if self._pushed(image):
                if not self._is_parent(image):
                    return None
                self._pull(image)
                return None
        self._say(f"building {image.name}")
        started = time.monotonic()
        self.log(image).unlink(missing_ok=True)
        if image.bootstrap:
            self._bootstrap(image)
        else:
            self._container_build(image)
        seconds = time.monotonic() - started
        self._say(f"built {image.name} in {seconds:.1f} s")
        return seconds

    def _is_parent(self, image: Image) -> bool:
        return any(other.parent == image.name for other in self.catalogue.images.values())

    def _exists_locally(self, image: Image) -> bool:
        command = host.podman("image", "exists", self.local(image))
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def _pull(self, image: Image) -> None:
        reference = f"{self.registry.address}/{image.repository}:{self.keys[image.name]}"
        host.run(host.podman("pull", "--quiet", "--tls-verify=false", reference), log=self.log(image))
        host.run(host.podman("tag", reference, self.local(image)), log=self.log(image))

    def _source_lines(self) -> list[str]:
        with self._lock:
            if self._lines is None:
                archive, security = host.host_mirrors()
                self._lines = host.sources(self.catalogue.suite, self.catalogue.components, archive, security)
            return self._lines

    def _bootstrap(self, image: Image) -> None:
        target = self.cache / "images" / f"{image.name}.tar"
        log = self.log(image)
        host.bootstrap(image.packages, self.catalogue.suite, self._source_lines(), target, log)
        host.run(host.podman("import", "--quiet", str(target), self.local(image)), log=log)
        target.unlink()

    def _container_build(self, image: Image) -> None:
        work = self.cache / "build" / image.name
        shutil.rmtree(work, ignore_errors=True)
        context, mount = work / "context", work / "mount"
        context.mkdir(parents=True)
        mount.mkdir()
        assert image.parent is not None
        parent = self.local(self.catalogue.get(image.parent))
        for name, content in self.catalogue.render(image, parent).items():
            if name == "Containerfile":
                (context / name).write_text(content, encoding="utf-8")
            elif name != "wheels":
                (mount / name).write_text(content, encoding="utf-8")
        if image.files:
            shutil.copytree(image.files, context / "files", symlinks=True)
        if image.wheels:
            download_wheels(image, mount / "wheels", self.cache / "wheels", self.log(image))
        arguments = [
            *("build", "--layers=false", "--network", "host", "--quiet", "--pull=never", *host.ULIMITS),
            *("--volume", f"{mount}:/mnt:ro", "--file", str(context / "Containerfile")),
            *("--tag", self.local(image)),
        ]
        if image.packages:
            host.write_apt(mount, self._source_lines())
            archives = self.cache / "apt" / image.name
            (archives / "partial").mkdir(parents=True, exist_ok=True)
            arguments += ["--volume", f"{self._lists(parent)}:/var/lib/apt/lists:ro"]
            arguments += ["--volume", f"{archives}:/var/cache/apt/archives"]
        host.run(host.podman(*arguments, str(context)), log=self.log(image))
        shutil.rmtree(work, ignore_errors=True)

    def _lists(self, reference: str) -> Path:
        """Fetch the package lists once for all builds; return their directory."""
        lists = self.cache / "apt" / "lists"
        stamp = self.cache / "apt" / "lists.stamp"
        with self._lists_lock:
            age = time.time() - stamp.stat().st_mtime if stamp.exists() else None
            # lists fetched before this run may name packages that a rebuild is meant to replace
            lifetime = time.monotonic() - self._started if self.rebuild else _INDEX_LIFETIME
            if age is not None and age < lifetime:
                return lists
            (lists / "partial").mkdir(parents=True, exist_ok=True)
            mount = self.cache / "build" / "lists"
            mount.mkdir(parents=True, exist_ok=True)
            host.write_apt(mount, self._source_lines())
            host.run(
                host.podman(
                    *("run", "--rm", "--network", "host", *host.ULIMITS, "--entrypoint", "apt-get"),
                    *("--env", "APT_CONFIG=/mnt/apt.conf", "--volume", f"{mount}:/mnt:ro"),
                    *("--volume", f"{lists}:/var/lib/apt/lists", reference, "update", "--quiet"),
                )
            )
            stamp.touch()
            return lists

    def _push(self, image: Image, build_seconds: float) -> None:
        key = self.keys[image.name]
        started = time.monotonic()
        manifest = self.registry.manifest(image.repository, key)
        if manifest is None or self.rebuild:
            for tag in (key, *image.tags):
                self._push_tag(image, tag)
            manifest = self.registry.manifest(image.repository, key)
            if manifest is None:
                raise ApplyFailed(
                    "image-push-failed", "the registry does not have what was pushed", where=image.name
                )
            seconds = time.monotonic() - started
            self._say(f"pushed {image.name} in {seconds:.1f} s ({manifest.size / 1e6:.0f} MB)")
        known = self.records.read(image.name)
        if known and known.key == key and known.digest == manifest.digest:
            return
        self.records.write(
            Record(
                name=image.name,
                key=key,
                repository=image.repository,
                digest=manifest.digest,
                size=manifest.size,
                created=time.time(),
                build_seconds=round(build_seconds, 1),
                push_seconds=round(time.monotonic() - started, 1),
            )
        )

    def _push_tag(self, image: Image, tag: str) -> None:
        target = f"docker://{self.registry.address}/{image.repository}:{tag}"
        # zstd unpacks several times as fast as gzip, and docker 23 and later can read it
        command = host.podman(
            *("push", "--quiet", "--tls-verify=false", "--format", "oci", "--compression-format", "zstd"),
            *(self.local(image), target),
        )
        host.run(command, log=self.log(image))

    def _say(self, message: str) -> None:
        with self._lock:
            self._report(f"[{time.monotonic() - self._started:6.1f} s] {message}")


def critical_weights(images: Mapping[str, Image]) -> dict[str, int]:
    """Estimate how much work is left once an image may start: its packages and its heaviest descendant's."""
    weights: dict[str, int] = {}

    def weight(name: str) -> int:
        if name not in weights:
            children = [weight(image.name) for image in images.values() if image.parent == name]
            weights[name] = 1 + len(images[name].packages) + max(children, default=0)
        return weights[name]

    for name in images:
        weight(name)
    return weights


def download_wheels(image: Image, target: Path, cache: Path, log: Path) -> None:
    """Fetch the wheels of `image` for its Python (not this machine's) through pip into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    version = image.wheel_python
    python = shutil.which("python3") or sys.executable
    common = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    pip = [python, "-m", "pip", "download", "--quiet", "--dest", str(cache / version)]
    arguments = [*common, "--abi", "abi3", "--abi", "none", "--abi", f"cp{version}"]
    for platform in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "any"):
        arguments += ["--platform", platform]
    host.run([*pip, *arguments, *image.wheels], log=log)
    for requirement in image.wheels:
        name, _, wanted = requirement.partition("==")
        for wheel in (cache / version).glob("*.whl"):
            distribution, release = wheel.name.split("-")[:2]
            if distribution.lower().replace("_", "-") == name.lower() and release == wanted:
                shutil.copyfile(wheel, target / wheel.name)


def lock_entries(
    catalogue: Catalogue, records: Records, registry_address: str
) -> dict[str, dict[str, object]]:
    """Return the content of ``images.lock.json``: every published image, pinned by digest.

    Raises:
        ConfigError: an image was not built yet, or changed since.
    """
    keys = catalogue.keys()
    entries: dict[str, dict[str, object]] = {}
    missing: list[str] = []
    for image in catalogue.images.values():
        if not image.publish:
            continue
        record = records.read(image.name)
        if record is None or record.key != keys[image.name]:
            missing.append(image.name)
            continue
        entries[image.name] = {
            "reference": f"{registry_address}/{record.repository}@{record.digest}",
            "tag": record.key,
            "size": record.size,
        }
    if missing:
        raise ConfigError(
            "images-not-built",
            f"not built, or changed since: {', '.join(sorted(missing))}",
            hint="run `cloudctl image build`",
        )
    return dict(sorted(entries.items()))


def write_lock(
    path: Path, registry_address: str, *, catalogue: Catalogue, cache: Path = DEFAULT_CACHE
) -> None:
    """Write ``images.lock.json``, with the registry at `registry_address` as its nodes see it.

    Raises:
        ConfigError: see `lock_entries`.
    """
    entries = lock_entries(catalogue, Records(cache), registry_address)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def summary(outcomes: Sequence[Outcome], seconds: float) -> Mapping[str, object]:
    """Return counts and the total time of a run, for its last line and for ``--output json``."""
    return {
        "built": sum(outcome.action == "built" for outcome in outcomes),
        "reused": sum(outcome.action == "reused" for outcome in outcomes),
        "seconds": round(seconds, 1),
    }
