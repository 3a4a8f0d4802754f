"""Certificates for a cluster: a CA of its own, and a certificate for each node.

    DIR/ca.crt, ca.key           the CA; its key signs the nodes' certificates, keep it off nodes
    DIR/node-1.crt, node-1.key   a node's; with ca.crt, all that the node needs

Theory of operation. The CA's certificate names the cluster by a URI, `raftha://<cluster name>`. A
node's certificate names the node, `raftha://<cluster name>/node/<id>`; `raftha.net.tls` describes
how these are compared. So a certificate is valid for one node only. It can name hosts too; then it
also serves the listener for clients, which check the host that they dialled.

Keys are ECDSA P-256, written unencrypted to files that only their owner can read. Files are never
overwritten, since a cluster that loses its CA's key needs a new CA and a new certificate for every
node. The holder of a CA's key can make any node's certificate. The holder of a node's key can act
as that node until its certificate expires or the node is removed. There is no revocation.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from raftha.errors import ConfigError
from raftha.extras import extra
from raftha.net.tls import cluster_uri, node_uri, read_file, read_secret

with extra("cli"):
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
NODE_DAYS = 825
"""The longest validity that some TLS stacks accept."""
DAYS_MAX = 36_500
_SKEW = dt.timedelta(hours=1)
"""A certificate is valid from an hour ago, since another node's clock may be behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The files that were written, and the end of their validity."""

    certificate: Path
    key: Path
    ca: Path
    expires: dt.datetime


def make_ca(cluster_name: str, folder: Path, days: int = CA_DAYS) -> Made:
    """Write a new CA into `folder`. ConfigError if it has one, or if it can't be written."""
    if not cluster_name or len(cluster_name.encode()) > 64:
        raise ConfigError("a cluster's name must be 1 to 64 bytes of UTF-8")
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(cluster_name, "raftha CA")
    builder = _builder(name, name, key.public_key(), key.public_key(), days)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(_names(cluster_uri(cluster_name), ()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / "ca.crt"
    _write_pair(certificate, path, key, folder / "ca.key")
    return Made(
        certificate=path,
        key=folder / "ca.key",
        ca=path,
        expires=certificate.not_valid_after_utc,
    )


def make_node(
    ca_folder: Path, node_id: int, folder: Path, days: int = NODE_DAYS, hosts: Sequence[str] = ()
) -> Made:
    """Write a certificate for a node of `ca_folder`'s cluster, its key, and a copy of ca.crt.

    `hosts` are names and IP addresses by which clients reach the node. ConfigError if a file exists
    already (except the same ca.crt) or can't be written, or if the CA can't be used.
    """
    if not 0 < node_id < 1 << 32:
        raise ConfigError(f"a node id must be from 1 to 2**32 - 1, got {node_id}")
    ca, ca_key, cluster_name = _load_ca(ca_folder)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(cluster_name, f"node {node_id}")
    builder = _builder(subject, ca.subject, key.public_key(), ca_key.public_key(), days)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_names(node_uri(cluster_name, node_id), hosts), critical=False)
    )
    certificate = builder.sign(ca_key, hashes.SHA256())
    path, key_path = folder / f"node-{node_id}.crt", folder / f"node-{node_id}.key"
    copy = _copy_ca(ca, folder / "ca.crt")
    _write_pair(certificate, path, key, key_path)
    return Made(certificate=path, key=key_path, ca=copy, expires=certificate.not_valid_after_utc)


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, str]:
    """A CA's certificate, its key, and the name of its cluster."""
    path, key_path = folder / "ca.crt", folder / "ca.key"
    text = read_file("the CA's certificate", path)
    secret = read_secret("the CA's key", key_path)
    try:
        ca = x509.load_pem_x509_certificate(text)
        key = serialization.load_pem_private_key(secret, None)
        names = ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        cluster_name = unquote(uri.removeprefix("raftha://"), errors="strict")
        ca.verify_directly_issued_by(ca)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
        raise ConfigError(
            f"{folder} holds no CA that `raftha cert ca` made: {error}",
            hint="ca.crt and ca.key are both needed",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise ConfigError(f"{key_path} is not the key of {path}")
    return ca, key, cluster_name


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    if not 0 < days <= DAYS_MAX:
        raise ConfigError(f"a certificate is valid for 1 to {DAYS_MAX} days, got {days}")
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _name(cluster_name: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_name),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _names(uri: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not host.isascii() or not host:
                raise ConfigError(f"{host!r} is neither a host name nor an IP address") from None
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# ------------------------------------------------------------------ files


def _copy_ca(ca: x509.Certificate, path: Path) -> Path:
    text = ca.public_bytes(serialization.Encoding.PEM)
    if not path.exists():
        _write(path, text, 0o644)
    elif read_file("the CA's certificate", path) != text:
        raise ConfigError(
            f"{path} belongs to another CA", hint="give each cluster a folder of its own"
        )
    return path


def _write_pair(
    certificate: x509.Certificate, path: Path, key: ec.EllipticCurvePrivateKey, key_path: Path
) -> None:
    for each in (path, key_path):
        if each.exists():
            raise ConfigError(f"{each} is there already", hint="move it away to make a new one")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(key_path, secret, 0o600)
    _write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a new file, with its final permissions from the start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
