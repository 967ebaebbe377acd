"""The image definitions: what they may say, what is built from them, and when something is built again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from cloudctl.errors import ConfigError, UsageError
from cloudctl.images.builder import critical_weights
from cloudctl.images.definition import load_catalogue, parse_catalogue
from cloudctl.paths import data_root

IMAGES = data_root() / "images"

# what the service definitions may name (the kolla image names)
NAMES = [
    "keystone",
    "glance-api",
    "placement-api",
    "nova-api",
    "nova-conductor",
    "nova-scheduler",
    "nova-novncproxy",
    "nova-compute",
    "nova-ssh",
    "nova-libvirt",
    "neutron-server",
    "neutron-metadata-agent",
    "openvswitch-db-server",
    "openvswitch-vswitchd",
    "ovn-nb-db-server",
    "ovn-sb-db-server",
    "ovn-northd",
    "ovn-controller",
    "cinder-api",
    "cinder-scheduler",
    "cinder-volume",
    "cinder-backup",
    "horizon",
    "mariadb-server",
    "mariadb-clustercheck",
    "rabbitmq",
    "memcached",
    "haproxy",
    "keepalived",
    "toolbox",
    "registry",
    "ceph",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the definitions that a test may change."""
    target = tmp_path / "images"
    shutil.copytree(IMAGES, target)
    return target


def test_published_names() -> None:
    published = {image.name for image in load_catalogue(IMAGES).images.values() if image.publish}
    assert published == set(NAMES)


def test_kolla_ids() -> None:
    users = {user.name: user.id for image in load_catalogue(IMAGES).images.values() for user in image.users}
    assert users["nova"] == 42436
    assert users["mysql"] == 42434
    assert users["ceph"] == 167


def test_order_has_parents_first_and_only_what_is_needed() -> None:
    names = [image.name for image in load_catalogue(IMAGES).order(["nova-conductor"])]
    assert names == ["debian", "base", "ceph-client", "openstack-base", "nova", "nova-conductor"]


def test_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        load_catalogue(IMAGES).order(["nova-conductro"])
    assert caught.value.ref == "image-unknown"


def test_keys_are_stable() -> None:
    assert load_catalogue(IMAGES).keys() == load_catalogue(IMAGES).keys()


def test_a_changed_file_changes_the_image_and_its_descendants_only(checkout: Path) -> None:
    before = load_catalogue(checkout).keys()
    with (checkout / "nova/files/usr/local/lib/kolla/extend_start").open("a") as handle:
        handle.write("# changed\n")
    after = load_catalogue(checkout).keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"nova", "nova-api", "nova-conductor", "nova-scheduler", "nova-novncproxy"}


def test_a_changed_setup_script_changes_the_image(checkout: Path) -> None:
    before = load_catalogue(checkout).keys()
    (checkout / "ceph/patch_mgr.py").write_text("# changed\n")
    after = load_catalogue(checkout).keys()
    assert {name for name in before if before[name] != after[name]} == {"ceph"}


def test_a_changed_package_list_changes_the_image(checkout: Path) -> None:
    before = load_catalogue(checkout).keys()
    data = yaml.safe_load((checkout / "images.yml").read_text())
    data["images"]["memcached"]["packages"].append("jq")
    after = parse_catalogue(data, checkout).keys()
    assert {name for name in before if before[name] != after[name]} == {"memcached"}


def test_users_come_before_packages() -> None:
    catalogue = load_catalogue(IMAGES)
    script = catalogue.render(catalogue.get("keystone"))["install.sh"]
    assert script.index("useradd --uid 42425") < script.index("apt-get install")
    assert "usermod --append --groups kolla keystone" in script


def test_configuration_only_image_runs_nothing() -> None:
    catalogue = load_catalogue(IMAGES)
    assert (
        catalogue.render(catalogue.get("nova-conductor"), "REF")["Containerfile"] == "FROM REF\nUSER nova\n"
    )


def test_ceph_has_no_kolla_entry_point() -> None:
    catalogue = load_catalogue(IMAGES)
    text = catalogue.render(catalogue.get("ceph"))["Containerfile"]
    assert "ENTRYPOINT []" in text
    assert catalogue.get("ceph").repository == "ceph/ceph"


def test_no_mirror_in_the_definitions() -> None:
    for path in IMAGES.rglob("*"):
        if path.is_file():
            assert "http" + "://deb" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parnet": "base"}, "unknown key 'parnet'"),
        ({"parent": "nowhere"}, "its parent 'nowhere' is not defined"),
        ({"parent": "base", "packages": "jq"}, "packages has to be a list"),
        ({"parent": "base", "users": ["nobody"]}, "user 'nobody' is not defined"),
        ({"parent": "a"}, "its own ancestor"),
    ],
)
def test_mistakes(change: dict[str, object], message: str, tmp_path: Path) -> None:
    data = {"images": {"base": {"bootstrap": True}, "a": change}}
    with pytest.raises(ConfigError, match=message) as caught:
        parse_catalogue(data, tmp_path)
    assert caught.value.where == str(tmp_path / "images.yml")


def test_missing_and_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_catalogue(tmp_path)
    assert caught.value.ref == "images-missing"
    (tmp_path / "images.yml").write_text("images: [")
    with pytest.raises(ConfigError) as caught:
        load_catalogue(tmp_path)
    assert caught.value.ref == "images-yaml"


def test_what_others_wait_for_weighs_most() -> None:
    images = load_catalogue(IMAGES).images
    weights = critical_weights(images)
    for image in images.values():
        if image.parent:
            assert weights[image.parent] > weights[image.name]
