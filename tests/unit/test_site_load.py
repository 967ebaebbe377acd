"""Reading a site into the model."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from site_support import edit, make_site

from cloudctl.errors import CloudctlError, ConfigError
from cloudctl.site import load_site
from cloudctl.site.document import Document, Problems, parse_document
from cloudctl.site.inventory import read_inventory
from cloudctl.site.model import Secrets, Settings
from cloudctl.site.schema import check_value, defaults, is_key, schema, suggestion
from cloudctl.site.validate import validate_site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path)


def load(path: Path) -> Any:
    return load_site(path, with_secrets=False)


def test_nodes_are_in_the_order_of_the_inventory_with_all_their_groups(site: Path) -> None:
    loaded = load(site)
    assert list(loaded.nodes)[:5] == ["cloud-deploy", "ctl01", "ctl02", "ctl03", "compute01"]
    assert loaded.nodes["ctl01"].groups == ("control", "mons")
    assert [node.name for node in loaded.group("mons")] == ["ctl01", "ctl02", "ctl03"]
    assert loaded.group("newnodes") == []
    assert len(loaded.group("all")) == len(loaded.nodes) == 11


def test_addresses_follow_the_management_address(site: Path) -> None:
    nodes = load(site).nodes
    assert nodes["ceph-osd01"].address == "10.10.10.211"
    assert nodes["ceph-osd01"].address_on("storage") == "10.10.30.211"
    assert nodes["ceph-osd01"].address_on("replication") == "10.10.40.211"
    assert nodes["ceph-osd01"].address_on("tenant") is None
    tenant = nodes["compute04"].interface_on("tenant")
    assert (tenant.name, tenant.address, tenant.mtu) == ("eth1", "10.10.20.24", 9000)


def test_a_provider_network_carries_no_address(site: Path) -> None:
    assert load(site).nodes["ctl01"].interface_on("external").address is None


def test_a_node_differs_by_its_own_interfaces(site: Path) -> None:
    own = (
        "{ansible_host: 10.10.10.21, interfaces: {eth1: {address: 10.10.20.99, mac: 52:54:00:12:34:56},"
        " eth2: {address: null}, eth9: {network: api, mtu: 9000}}}"
    )
    edit(site, "inventory/hosts.yml", "{ansible_host: 10.10.10.21}", own)
    ports = load(site).nodes["compute01"].interfaces
    # All digits: YAML 1.1 would read the MAC address as a number in base 60.
    assert (ports["eth1"].address, ports["eth1"].mac) == ("10.10.20.99", "52:54:00:12:34:56")
    assert ports["eth2"].address is None
    assert (ports["eth9"].network, ports["eth9"].address, ports["eth9"].mtu) == (
        "api",
        "192.168.124.21",
        9000,
    )


def test_variables_win_in_ansibles_order(site: Path) -> None:
    inventory = site / "inventory"
    edit(
        site,
        "inventory/hosts.yml",
        "{ansible_host: 10.10.10.22}",
        "{ansible_host: 10.10.10.22, custom_a: host}",
    )
    (inventory / "group_vars" / "compute.yml").write_text("custom_a: group\ncustom_b: group\n")
    (inventory / "host_vars").mkdir()
    (inventory / "host_vars" / "compute01.yml").write_text("custom_b: own\n")
    nodes = load(site).nodes
    assert nodes["compute01"].vars["custom_a"] == "group"
    assert nodes["compute01"].vars["custom_b"] == "own"
    assert nodes["compute02"].vars["custom_a"] == "host"
    assert nodes["compute02"].vars["ansible_user"] == "root"
    assert nodes["ceph-osd01"].vars["devices"][0] == "/dev/sdc"


def test_a_groups_variables_win_over_its_parents(site: Path) -> None:
    # By name alone `control` would come before `mons`, and `zone` after both.
    edit(
        site,
        "inventory/hosts.yml",
        "    newnodes:",
        "    newnodes:\n    zone: {children: {control: , mons: }}",
    )
    for group, text in (("zone", "zone"), ("control", "control"), ("all", "all")):
        with (site / "inventory" / "group_vars" / f"{group}.yml").open("a") as stream:
            stream.write(f"custom_a: {text}\n" + ("custom_b: all\n" if group == "all" else ""))
    node = load(site).nodes["ctl01"]
    assert node.groups == ("control", "mons", "zone")
    assert (node.vars["custom_a"], node.vars["custom_b"]) == ("control", "all")


def test_what_a_group_gives_to_its_nodes(site: Path) -> None:
    vars_file = site / "inventory" / "group_vars" / "storage.yml"
    vars_file.parent.mkdir(exist_ok=True)
    vars_file.write_text("journal_devices: [/dev/sdz]\n")
    edit(
        site,
        "inventory/hosts.yml",
        "    newnodes:",
        "    newnodes:\n    disks: {vars: {custom_a: 1}, children: {storage: }}",
    )
    given = read_inventory(site, "inventory/hosts.yml", Problems()).vars
    assert given["storage"]["journal_devices"] == ["/dev/sdz"]
    assert given["storage"]["custom_a"] == 1
    assert "journal_devices" not in given["compute"]


def test_a_group_file_of_another_shape(site: Path) -> None:
    (site / "inventory" / "group_vars" / "compute.yml").write_text("[a]\n")
    with pytest.raises(ConfigError) as caught:
        load(site)
    assert (caught.value.ref, caught.value.where) == ("wrong-type", "inventory/group_vars/compute.yml:1")


def test_settings_have_their_defaults(site: Path) -> None:
    loaded = load(site)
    assert loaded.name == "cloud"
    assert loaded.get("ceph.pools.size") == 3
    assert loaded.get("registry.address") == "10.10.10.2:5000"
    assert loaded.get("virtualisation.cpu_mode") == "host-model"
    assert loaded.get("ceph.pools") == {"size": 3, "min_size": 2, "device_class": {}, "extra": []}
    assert loaded.get("services.alpha") == {"enabled": True, "workers": 2, "motto": "hello"}
    assert loaded.get("no.such", 5) == 5
    with pytest.raises(ConfigError, match=r"no setting 'no\.such'"):
        loaded.get("no.such")


def test_settings_of_a_service(site: Path) -> None:
    with (site / "settings.yml").open("a") as stream:
        stream.write("services: {alpha: {workers: 7}, beta: {enabled: false}}\n")
    loaded = load(site)
    assert loaded.get("services.alpha.workers") == 7
    assert loaded.get("services.beta.enabled") is False


def test_images_come_from_the_lock_file(site: Path) -> None:
    assert load(site).images == {}
    entry = {"reference": "10.10.10.2:5000/cloudctl/keystone@sha256:00", "tag": "x", "size": 1}
    (site / "images.lock.json").write_text(json.dumps({"keystone": entry}))
    assert load(site).images["keystone"] == entry
    (site / "images.lock.json").write_text('{"keystone": {}}')
    with pytest.raises(ConfigError) as caught:
        load(site)
    assert caught.value.ref == "json-malformed"


def test_a_site_can_cross_processes(site: Path) -> None:
    loaded = load(site)
    again = pickle.loads(pickle.dumps(loaded.nodes["ctl01"]))
    assert again == loaded.nodes["ctl01"]


def test_all_errors_come_at_once(site: Path) -> None:
    edit(site, "settings.yml", "  internal: 10.10.10.250", "  internal: 10.10.10.11")
    edit(site, "inventory/hosts.yml", "{ansible_host: 10.10.10.22}", "{ansible_host: 10.10.10.21}")
    (site / "networks.yml").write_text("networks: {\n")
    _, errors = validate_site(site, with_secrets=False)
    assert [error.ref for error in errors] == ["yaml-malformed"]
    _, errors = validate_site(site / "missing")
    assert [error.ref for error in errors] == ["site-missing"]


def test_a_big_site_loads_fast(site: Path) -> None:
    hosts = "\n".join(
        f"        n{i}: {{ansible_host: 10.{16 + i // 65000}.{i // 250 + 1}.{i % 250 + 1}}}"
        for i in range(1000)
    )
    text = (site / "inventory/hosts.yml").read_text()
    start, end = text.index("        compute01:"), text.index("    storage:")
    (site / "inventory/hosts.yml").write_text(
        (text[:start] + hosts + "\n" + text[end:]).replace("10.10.10.", "10.16.200.")
    )
    networks = (site / "networks.yml").read_text()
    for number, third in enumerate((10, 20, 30, 40)):
        networks = networks.replace(f"10.10.{third}.0/24", f"10.{16 + number}.0.0/16")
    networks = networks.replace("192.168.124.0/24", "10.24.0.0/16").replace("10.10.10.1", "10.16.0.9")
    (site / "networks.yml").write_text(networks.replace("gateway: 10.16.0.9\n", "gateway: 10.16.250.1\n"))
    edit(site, "settings.yml", "10.10.10.250", "10.16.250.250")
    edit(site, "settings.yml", "192.168.124.250", "10.24.250.250")
    edit(site, "inventory/hosts.yml", "192.168.124.10", "10.24.250.10")
    start_time = time.perf_counter()
    loaded = load(site)
    assert len(loaded.nodes) == 1007
    assert time.perf_counter() - start_time < 3


def test_secrets_do_not_show() -> None:
    secrets = Secrets({"a": "canary"})
    assert "canary" not in repr(secrets)
    assert secrets["a"] == "canary"
    assert secrets.get("b") is None
    with pytest.raises(ConfigError) as caught:
        secrets["b"]
    assert caught.value.ref == "secret-missing"


def test_settings_are_a_mapping() -> None:
    values = Settings({"a": {"b": 1}})
    assert (values["a"], list(values), len(values), values.get("a.b")) == ({"b": 1}, ["a"], 1, 1)


def _entries(section: Any, path: str) -> Any:
    for key, entry in section.items():
        if is_key(entry):
            yield f"{path}.{key}", entry
        else:
            yield from _entries(entry, f"{path}.{key}")


def test_every_key_of_the_schema_is_documented_and_its_default_valid() -> None:
    known = {"type", "default", "description", "enum", "min", "max", "items", "values", "format", "derived"}
    for path, entry in _entries(schema(), ""):
        # A comma in an unquoted description silently ends it.
        assert set(entry) <= known | {"length", "required"}, path
        assert entry["description"].endswith((".", ")")), path
        assert "default" in entry and "type" in entry, path
        problems = Problems()
        assert check_value(entry, entry["default"], Document("x", None), (path,), problems), problems


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (
            "url",
            ["http://10.0.0.1:8081/", "https://a.example"],
            ["ftp://a", "http://", "http://a b", "a", "http://a:99999"],
        ),
        ("hostport", ["10.0.0.1:5000", "registry.example"], ["a:0", "a:99999", "a/b", ""]),
        ("cidr", ["10.0.0.0/8", "10.0.0.0/30"], ["10.0.0.0/31", "10.0.0.1/24", "10.0.0.0", "x/8"]),
        ("ip", ["10.0.0.1"], ["10.0.0", "10.0.0.256", "::1", ""]),
        ("mac", ["52:54:00:12:34:56", "AA:bb:cc:dd:ee:ff"], ["52:54:00:12:34", "52-54-00-12-34-56"]),
        ("name", ["a", "Region-1.x_y"], ["", "-a", "a b", "a" * 64]),
        ("device", ["/dev/sdb", "/dev/disk/by-id/x:1"], ["sdb", "/dev/", "/dev/a b"]),
    ],
)
def test_formats(form: str, good: list[str], bad: list[str]) -> None:
    entry = {"type": "str", "format": form, "description": "."}
    for value, valid in [*((value, True) for value in good), *((value, False) for value in bad)]:
        assert check_value(entry, value, Document("f", None), ("x",), Problems()) is valid, value


def test_what_is_wrong_is_said_in_the_words_of_yaml() -> None:
    for value, word in ((None, "nothing"), (True, "true"), ([], "a list"), ({}, "a mapping"), (1.5, "1.5")):
        problems = Problems()
        check_value({"type": "int", "default": 1}, value, Document("f", None), ("x",), problems)
        assert problems[0].message == f"x must be a whole number, not {word}"


def test_suggestions() -> None:
    assert suggestion("regoin", ["region", "name"]) == "did you mean 'region'?"
    assert suggestion("zzz", ["b", "a"]) == "known: a, b"
    assert suggestion("zzz", [str(number) for number in range(21)]) is None


def test_defaults_are_copies() -> None:
    defaults(schema()["settings"])["sysctl"]["x"] = 1
    assert defaults(schema()["settings"])["sysctl"] == {}


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(_trees, st.booleans())
@settings(max_examples=150, deadline=None)
def test_parsing_agrees_with_yaml(tree: Any, flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    problems = Problems()
    document = parse_document("f.yml", text, problems)
    assert problems == []
    assert document is not None and document.data == yaml.load(text, Loader=yaml.CSafeLoader)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.integers(), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_every_value_knows_its_line(tree: dict[str, int]) -> None:
    text = "# comment\n" + "".join(f"{json.dumps(key)}: {value}\n" for key, value in tree.items())
    document = parse_document("f.yml", text, Problems())
    assert document is not None
    for number, key in enumerate(tree, start=2):
        assert document.where(key) == f"f.yml:{number}"
        assert document.where(key, "deeper", 3) == f"f.yml:{number}"


@pytest.mark.parametrize(
    ("text", "ref", "part"),
    [
        ("a: &a\n  b: *a\n", "yaml-malformed", "an anchor contains itself"),
        ("x: 1\na: !python/name:os.system x\n", "yaml-tag", "os.system"),
        ("x: 1\n[1, 2]: a\n", "yaml-key", "plain word"),
        ("a: {x: 1}\nb: {<<: [5]}\n", "yaml-key", "needs a mapping"),
        ("a: 1\n---\nb: 1\n", "yaml-malformed", "single document"),
    ],
)
def test_yaml_that_no_site_needs_is_refused(text: str, ref: str, part: str) -> None:
    problems = Problems()
    parse_document("f", text, problems)
    assert [problem.ref for problem in problems] == [ref]
    assert part in problems[0].message
    assert problems[0].where and problems[0].where.startswith(("f:2", "f:1:4", "f:1"))


def test_what_ansible_encrypts_and_dates_stay_text() -> None:
    problems = Problems()
    document = parse_document("f", "a: !vault |\n  $ANSIBLE_VAULT\nb: 2026-01-02\nc: 12:30\n", problems)
    assert problems == [] and document is not None
    assert document.data == {"a": "$ANSIBLE_VAULT\n", "b": "2026-01-02", "c": "12:30"}


def test_merge_keys_and_anchors() -> None:
    document = parse_document("f", "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n", Problems())
    assert document is not None
    assert document.data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("file", ["inventory/hosts.yml", "networks.yml", "settings.yml", "images.lock.json"])
@given(data=st.one_of(st.text(max_size=60), _trees.map(lambda tree: yaml.safe_dump(tree))))
@settings(max_examples=60, deadline=None)
def test_no_content_crashes_the_loader(tmp_path_factory: Any, file: str, data: str) -> None:
    directory = tmp_path_factory.mktemp("any")
    site = make_site(directory) if not _cache else _cache[0]
    if not _cache:
        _cache.append(site)
    good = (site / file).read_bytes() if (site / file).exists() else None
    try:
        (site / file).write_text(data, encoding="utf-8", errors="surrogatepass")
        load_site(site, with_secrets=False)
    except CloudctlError as error:
        assert error.exit_code == 3
        assert error.render()
    finally:
        if good is None:
            (site / file).unlink()
        else:
            (site / file).write_bytes(good)


_cache: list[Path] = []


@pytest.mark.parametrize("file", ["inventory/hosts.yml", "networks.yml", "settings.yml"])
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_wrong_type_crashes_the_loader(tmp_path_factory: Any, file: str, data: Any) -> None:
    """Any one value of a good file replaced by any other thing gives errors, never an exception."""
    if not _cache:
        _cache.append(make_site(tmp_path_factory.mktemp("any")))
    site = _cache[0]
    good = (site / file).read_text()
    tree = yaml.safe_load(good)
    paths = list(_paths(tree, ()))
    path = data.draw(st.sampled_from(paths))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(_trees)
    try:
        (site / file).write_text(yaml.safe_dump(tree))
        load_site(site, with_secrets=False)
    except CloudctlError as error:
        assert error.exit_code == 3
    finally:
        (site / file).write_text(good)


def _paths(tree: Any, path: tuple[Any, ...]) -> Any:
    if path:
        yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _paths(value, (*path, index))
