"""Certificates for TLS between the Ray processes of a cluster that no cert-manager issues them to.

python -m supertiny.certificates authority ~/.ray/tls    once, where the cluster is made from: ca.crt and ca.key
python -m supertiny.certificates node ~/.ray/tls         on each node, which has both: node.crt and node.key, for its addresses

`environment` says what Ray has to be told of them.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from supertiny.errors import MissingInput

LIFETIME = datetime.timedelta(days=365)
"""Of a certificate, also of an authority: a cluster that lives longer is taken down and up again."""
_CLOCKS_APART = datetime.timedelta(minutes=10)


def make_authority(folder: Path) -> None:
    """Write `ca.crt` and `ca.key`, where they are not there: what another authority signed would be refused."""
    if (folder / "ca.key").exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("supertiny")
    signed = _certificate(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(folder, "ca", signed.sign(key, hashes.SHA256()), key)


def make_node(folder: Path, addresses: Sequence[str]) -> None:
    """Write `node.crt` and `node.key`, signed by the folder's authority.

    Args:
        addresses: IP addresses by which other nodes reach this one.

    Raises:
        MissingInput: the folder has no authority.
    """
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        signer = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except FileNotFoundError as error:
        raise MissingInput(f"no {error.filename}; `python -m supertiny.certificates authority {folder}` makes it") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise MissingInput(f"{folder / 'ca.key'} is no key that supertiny.certificates made")
    key = ec.generate_private_key(ec.SECP256R1())
    own = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", *addresses))]
    signed = (
        _certificate(_name("node"), authority.subject, key)
        .add_extension(x509.SubjectAlternativeName(own), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    _write(folder, "node", signed.sign(signer, hashes.SHA256()), key)


def environment(folder: Path) -> dict[str, str]:
    """What every Ray process of a node needs in its environment."""
    files = {"RAY_TLS_CA_CERT": "ca.crt", "RAY_TLS_SERVER_CERT": "node.crt", "RAY_TLS_SERVER_KEY": "node.key"}
    return {"RAY_USE_TLS": "1", **{name: str(folder / file) for name, file in files.items()}}


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + LIFETIME)
    )


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with open(os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def main() -> None:
    """Make what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["authority", "node"])
    parser.add_argument("folder", type=Path)
    flags = parser.parse_args()
    if flags.what == "authority":
        make_authority(flags.folder)
    else:
        from ray.util import get_node_ip_address

        make_node(flags.folder, [get_node_ip_address()])  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
