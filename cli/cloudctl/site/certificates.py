"""The site's CA and the certificate of its virtual addresses."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
CERTIFICATE_DAYS = 825
"""The longest that common clients accept."""

RENEW_DAYS = 30
"""Certificates that end sooner are made anew."""


def make_ca(cloud: str) -> tuple[str, str]:
    """Return a new CA's certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cloud} site CA")])
    builder = (
        _builder(name, name, key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, hashes.SHA256())), _key_pem(key)


def make_certificate(
    ca_certificate: str, ca_key: str, cloud: str, addresses: Iterable[str], *, days: int = CERTIFICATE_DAYS
) -> tuple[str, str]:
    """Return a server's certificate and key in PEM.

    Args:
        ca_certificate, ca_key: of the CA that signs, in PEM.
        cloud: name of the cloud.
        addresses: the virtual addresses.
        days: validity.

    Raises:
        ValueError: the CA's certificate or key is not valid PEM.
    """
    ca = x509.load_pem_x509_certificate(ca_certificate.encode())
    signer = serialization.load_pem_private_key(ca_key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != ca.public_key():
        raise ValueError("the CA's key does not belong to its certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cloud)])
    alternatives = [x509.DNSName(name) for name in host_names(cloud)]
    addresses = dict.fromkeys(addresses)
    builder = (
        _builder(subject, ca.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [*alternatives, *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _pem(builder.sign(signer, hashes.SHA256())), _key_pem(key)


def host_names(cloud: str) -> list[str]:
    """Return the host names that the certificate is valid for."""
    # A host name has no underscore and no capitals; the cloud's name may.
    name = cloud.lower().replace("_", "-")
    return [name, f"internal.{name}", f"api.{name}"]


def outdated(ca_certificate: str, certificate: str, cloud: str, addresses: Iterable[str]) -> str | None:
    """Return why a certificate must be made anew, None when it is good.

    Raises:
        ValueError: not valid PEM.
    """
    ca = x509.load_pem_x509_certificate(ca_certificate.encode())
    own = x509.load_pem_x509_certificate(certificate.encode())
    try:
        own.verify_directly_issued_by(ca)
    except (InvalidSignature, TypeError, ValueError):
        return "it is not signed by the site's CA"
    left = own.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left < datetime.timedelta(days=RENEW_DAYS):
        return f"it ends on {own.not_valid_after_utc:%Y-%m-%d}"
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "it names no address"
    valid = {str(item) for item in names.get_values_for_type(x509.IPAddress)}
    valid.update(names.get_values_for_type(x509.DNSName))
    for wanted in (*addresses, *host_names(cloud)):
        if wanted not in valid:
            return f"it is not valid for {wanted}"
    return None


def mismatch(certificate: bytes, key: bytes) -> str | None:
    """Return what is wrong with an operator's certificate and key, None when they belong together."""
    try:
        own = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        return "the certificate is not valid PEM"
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except TypeError:
        return "the key is encrypted"
    except ValueError:
        return "the key is not valid PEM"
    if private.public_key() != own.public_key():
        return "the key does not belong to the certificate"
    if own.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        return f"the certificate ended on {own.not_valid_after_utc:%Y-%m-%d}"
    return None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A node whose clock is behind must accept it too.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
