"""Making and reading the site's secrets."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from site_support import edit, make_site

from cloudctl.errors import CloudctlError, ConfigError
from cloudctl.main import run
from cloudctl.site import certificates, load_site, vault
from cloudctl.site.names import KINDS, secret_names
from cloudctl.site.secrets import generate, make, make_ssh_key, ssh_public_key
from cloudctl.site.validate import validate_site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(vault.PASSWORD_VARIABLE, raising=False)
    return make_site(tmp_path)


def values(site: Path) -> dict[str, str]:
    return vault.open_secrets(site / "secrets.yml")


def write(site: Path, content: dict[str, str]) -> None:
    (site / "secrets.yml").write_text(vault.encrypt(content, vault.password(site)))


def the_error(site: Path) -> CloudctlError:
    _, errors = validate_site(site)
    assert len(errors) == 1, [error.render() for error in errors]
    assert errors[0].exit_code == 3
    return errors[0]


def test_names_follow_from_the_definitions() -> None:
    names = secret_names(
        {
            "a": {
                "databases": [
                    {"name": "x", "user": "u"},
                    {"name": "y", "user": "u"},
                    {"name": "z", "user": "v"},
                ],
                "messaging": {"user": "m"},
                "identity": {"user": "i"},
                "ceph": {"client": {"name": "c"}},
                "secrets": {"own": {"kind": "fernet", "description": "d"}, "login": {"kind": "ssh-key"}},
            },
            "b": {},
        }
    )
    fixed = set(secret_names({}))
    assert set(names) - fixed == {
        "u_database_password", "v_database_password", "m_messaging_password", "i_identity_password",
        "ceph_client_c_key", "own", "login_private_key", "login_public_key",
    }  # fmt: skip
    assert names["ceph_client_c_key"].kind == "ceph-key"
    assert {"admin_password", "ceph_fsid", "ca_certificate", "ca_key", "tls_key", "vrrp_password"} <= fixed
    assert all(secret.kind in KINDS and secret.name == name for name, secret in names.items())
    with pytest.raises(ConfigError, match="unknown kind 'secretive'"):
        secret_names({"a": {"secrets": {"x": {"kind": "secretive"}}}})


def test_generate_makes_a_complete_site(site: Path) -> None:
    done = generate(site)
    loaded = load_site(site)
    assert set(done.made) == set(loaded.secrets) and done.kept == 0
    assert {"alpha_database_password", "alpha_shared", "ceph_client_alpha_key"} <= set(loaded.secrets)
    assert done.password_made == site / ".vault-password"
    for name in (".vault-password", "secrets.yml"):
        assert (site / name).stat().st_mode & 0o777 == 0o600
    assert (site / "ca.crt").read_text() == loaded.secrets["ca_certificate"]
    assert (site / "secrets.yml").read_text().startswith("$ANSIBLE_VAULT;1.1;AES256\n")
    assert len(set(loaded.secrets.values())) == len(loaded.secrets)


def test_generate_again_changes_nothing(site: Path) -> None:
    generate(site)
    before = (site / "secrets.yml").read_bytes()
    done = generate(site)
    assert (done.made, dict(done.renewed), done.password_made) == ((), {}, None)
    assert (site / "secrets.yml").read_bytes() == before


def test_generate_fills_only_what_is_missing(site: Path) -> None:
    generate(site)
    content = values(site)
    del content["alpha_database_password"]
    content["admin_password"] = "mine"
    content["custom"] = "kept"
    write(site, content)
    assert the_error(site).ref == "secret-missing"
    assert "alpha_database_password" in the_error(site).message
    assert generate(site).made == ("alpha_database_password",)
    after = values(site)
    assert after.pop("alpha_database_password")
    del content["ceph_fsid"], after["ceph_fsid"]
    assert after == content


def test_no_file_of_secrets(site: Path) -> None:
    error = the_error(site)
    assert (error.ref, error.where) == ("secrets-missing", "secrets.yml")
    assert error.hint and "cloudctl secrets generate" in error.hint


def test_missing_vault_password(site: Path) -> None:
    generate(site)
    (site / ".vault-password").unlink()
    assert the_error(site).ref == "vault-password-missing"
    with pytest.raises(ConfigError) as caught:
        generate(site)
    # A new password would only hide that the old one is lost.
    assert caught.value.ref == "vault-password-missing"
    assert not (site / ".vault-password").exists()


def test_wrong_vault_password(site: Path) -> None:
    generate(site)
    before = (site / "secrets.yml").read_bytes()
    (site / ".vault-password").write_text("wrong\n")
    error = the_error(site)
    assert (error.ref, error.where) == ("vault-password-wrong", "secrets.yml:1")
    with pytest.raises(ConfigError):
        generate(site)
    assert (site / "secrets.yml").read_bytes() == before


def test_an_empty_vault_password(site: Path) -> None:
    generate(site)
    (site / ".vault-password").write_text("\n")
    assert the_error(site).ref == "vault-password-missing"


def test_the_password_may_come_from_a_program(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(site)
    secret = (site / ".vault-password").read_text().strip()
    (site / ".vault-password").unlink()
    program = site / "password.sh"
    program.write_text(f"#!/bin/sh\necho {secret}\n")
    program.chmod(0o700)
    monkeypatch.setenv(vault.PASSWORD_VARIABLE, str(program))
    assert len(load_site(site).secrets) > 5
    program.write_text("#!/bin/sh\nexit 3\n")
    error = the_error(site)
    assert error.ref == "vault-password-program" and "code 3" in error.message


def test_a_damaged_or_plain_file(site: Path) -> None:
    generate(site)
    encrypted = (site / "secrets.yml").read_text()
    (site / "secrets.yml").write_text("\n".join(encrypted.splitlines()[:3]) + "\n")
    assert the_error(site).ref in ("secrets-damaged", "vault-password-wrong")
    (site / "secrets.yml").write_text("admin_password: canary\n")
    error = the_error(site)
    assert error.ref == "secrets-not-encrypted" and "canary" not in error.render()


@pytest.mark.parametrize(
    "plain", ["a: canary: x\n", "[canary]", "admin_password: 5\n", "admin_password: ''\n"]
)
def test_malformed_content_is_not_shown(site: Path, plain: str) -> None:
    generate(site)
    encrypted = vault._vault(vault.password(site)).encrypt(plain)
    (site / "secrets.yml").write_bytes(encrypted)
    error = the_error(site)
    assert error.ref == "secrets-malformed" and "canary" not in error.render()


def test_the_vault_is_ansibles(site: Path) -> None:
    generate(site)
    plain = vault._vault(vault.password(site)).decrypt((site / "secrets.yml").read_bytes())
    # Keys as blocks, as people edit them.
    assert b"ca_key: |" in plain


def test_the_certificate_is_valid_for_both_addresses_and_signed_by_the_ca(site: Path, tmp_path: Path) -> None:
    generate(site)
    secrets = values(site)
    certificate = x509.load_pem_x509_certificate(secrets["tls_certificate"].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {
        "10.10.10.250",
        "192.168.124.250",
    }
    assert "cloud" in names.get_values_for_type(x509.DNSName)
    authority = x509.load_pem_x509_certificate((site / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert (authority.not_valid_after_utc - authority.not_valid_before_utc).days >= 3650
    assert certificates.mismatch(secrets["tls_certificate"].encode(), secrets["tls_key"].encode()) is None
    assert certificates.mismatch(secrets["ca_certificate"].encode(), secrets["ca_key"].encode()) is None


def test_the_certificate_is_renewed_when_the_addresses_change(site: Path) -> None:
    generate(site)
    before = values(site)
    edit(site, "settings.yml", "internal: 10.10.10.250", "internal: 10.10.10.249")
    error = the_error(site)
    assert error.ref == "certificate-outdated" and "10.10.10.249" in error.message
    done = generate(site)
    assert set(done.renewed) == {"tls_certificate", "tls_key"} and done.made == ()
    after = values(site)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"tls_certificate", "tls_key"}
    load_site(site)


def test_the_certificate_is_renewed_on_request_and_near_its_end(site: Path) -> None:
    generate(site)
    assert set(generate(site, renew_certificate=True).renewed) == {"tls_certificate", "tls_key"}
    content = values(site)
    content["tls_certificate"], content["tls_key"] = certificates.make_certificate(
        content["ca_certificate"], content["ca_key"], "cloud", ["10.10.10.250", "192.168.124.250"], days=20
    )
    write(site, content)
    assert "it ends on" in the_error(site).message
    assert set(generate(site).renewed) == {"tls_certificate", "tls_key"}


def test_a_certificate_that_cannot_be_read(site: Path) -> None:
    generate(site)
    content = values(site)
    content["tls_certificate"] = "nothing"
    write(site, content)
    assert the_error(site).ref == "tls-invalid"
    with pytest.raises(ConfigError) as caught:
        generate(site)
    assert caught.value.ref == "tls-invalid"


def test_many_missing_secrets_are_counted(site: Path) -> None:
    generate(site)
    write(site, {"admin_password": "x"})
    assert "more" in the_error(site).message
    assert "of the secrets are missing" in the_error(site).message


def test_half_a_ca_is_never_completed(site: Path) -> None:
    generate(site)
    content = values(site)
    del content["ca_key"]
    write(site, content)
    with pytest.raises(ConfigError) as caught:
        generate(site)
    assert caught.value.ref == "ca-incomplete"


def test_a_provided_certificate_stands_in(site: Path) -> None:
    generate(site)
    authority, key = certificates.make_ca("other")
    own, own_key = certificates.make_certificate(authority, key, "cloud", ["10.10.10.250"])
    for name, content in (("t.pem", own), ("t.key", own_key), ("ca.pem", authority)):
        (site / name).write_text(content)
    edit(
        site,
        "settings.yml",
        "cloud:\n",
        "tls: {source: provided, certificate: t.pem, key: t.key, ca: ca.pem}\ncloud:\n",
    )
    secrets = load_site(site).secrets
    assert (secrets["tls_certificate"], secrets["tls_key"], secrets["ca_certificate"]) == (
        own,
        own_key,
        authority,
    )


def test_generate_refuses_a_wrong_site(site: Path) -> None:
    edit(site, "settings.yml", "internal: 10.10.10.250", "internal: 10.10.10.11")
    with pytest.raises(ConfigError) as caught:
        generate(site)
    assert caught.value.ref == "vip-in-use"
    assert not (site / "secrets.yml").exists() and not (site / ".vault-password").exists()


def test_kinds() -> None:
    Fernet(make("fernet"))
    assert uuid.UUID(make("uuid")).version == 4
    assert len(make("vrrp")) == 8
    assert len(make("password")) == 32 and make("password").isalnum()
    assert make("erlang-cookie").isupper()
    kind, seconds, nanoseconds, length = struct.unpack("<HIIH", base64.b64decode(make("ceph-key"))[:12])
    assert (kind, length) == (1, 16) and seconds > 1_600_000_000 and nanoseconds < 10**9
    assert len(base64.b64decode(make("ceph-key"))) == 28
    with pytest.raises(ValueError, match="unknown kind"):
        make("riddle")


@pytest.mark.parametrize("kind", ["password", "fernet", "uuid", "erlang-cookie", "vrrp", "ceph-key"])
def test_no_two_secrets_are_the_same(kind: str) -> None:
    assert len({make(kind) for _ in range(50)}) == 50


def test_ssh_keys_are_a_pair(tmp_path: Path) -> None:
    private = make_ssh_key()
    file = tmp_path / "key"
    file.write_text(private)
    file.chmod(0o600)
    result = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, text=True, check=True)
    assert ssh_public_key(private).split()[:2] == result.stdout.split()[:2]
    with pytest.raises(ConfigError):
        ssh_public_key("nothing")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
        st.text(
            st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), min_size=1, max_size=40
        ),
        max_size=5,
    )
)
def test_the_vault_returns_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("vault") / "secrets.yml"
    file.write_text(vault.encrypt(content, b"password"))
    assert vault.read_secrets(file, b"password") == content


def test_no_temporary_file_is_left_and_a_failed_write_keeps_the_old(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(site)
    before = (site / "secrets.yml").read_bytes()
    names = sorted(site.iterdir())

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        generate(site, renew_certificate=True)
    monkeypatch.undo()
    assert (site / "secrets.yml").read_bytes() == before
    assert sorted(site.iterdir()) == names


def test_the_commands_never_show_a_value(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--site", str(site), "secrets", "generate"]) == 0
    assert run(["--site", str(site), "secrets", "list"]) == 0
    assert run(["--site", str(site), "secrets", "list", "--output", "json"]) == 0
    assert run(["--site", str(site), "secrets", "generate", "--renew-certificate"]) == 0
    shown = capsys.readouterr()
    assert "alpha_database_password" in shown.out
    content = values(site)
    for value in [*content.values(), (site / ".vault-password").read_text().strip()]:
        assert value not in shown.out + shown.err
        assert all(len(line) < 16 or line not in shown.out for line in value.splitlines())


def test_the_list_says_what_is_missing(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--site", str(site), "secrets", "list", "--output", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and not any(row["present"] for row in rows)
    generate(site)
    content = values(site)
    content["extra"] = "x"
    write(site, content)
    assert run(["--site", str(site), "secrets", "list", "--output", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["present"] for row in rows)
    assert [row["kind"] for row in rows if row["name"] == "extra"] == ["own"]
