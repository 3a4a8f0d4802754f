"""Certificates for tests: those that `raftha cert` makes, and wrong ones."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from raftha.net.certificates import Made, make_ca, make_node
from raftha.net.tls import PeerTls

CLUSTER = "orders"


def make_cluster(folder: Path, nodes: int = 3, cluster_name: str = CLUSTER) -> dict[int, Made]:
    """Make a CA in `folder`/ca, and in `folder` a certificate for each node, for loopback."""
    make_ca(cluster_name, folder / "ca")
    return {
        i: make_node(folder / "ca", i, folder, hosts=["127.0.0.1"]) for i in range(1, nodes + 1)
    }


def peer_tls(made: Made, cluster_name: str = CLUSTER) -> PeerTls:
    """The TLS settings of a peer with these files, right or wrong."""
    return PeerTls.load(cluster_name, made.ca, made.certificate, made.key)


def expire(made: Made, ca: Path) -> None:
    """Replace a certificate by one like it that expired a minute ago."""
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    key = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now - dt.timedelta(minutes=1))
    )
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    expired = builder.sign(key, hashes.SHA256())
    made.certificate.write_bytes(expired.public_bytes(serialization.Encoding.PEM))
