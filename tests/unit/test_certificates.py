from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from supertiny.certificates import make_authority, make_node
from supertiny.errors import MissingInput


def handshake(server_folder: Path, client_folder: Path, name: str) -> None:
    """Both sides of a mutual TLS handshake, in memory."""
    sides = []
    for purpose, folder in ((ssl.Purpose.CLIENT_AUTH, server_folder), (ssl.Purpose.SERVER_AUTH, client_folder)):
        context = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "node.crt", folder / "node.key")
        context.verify_mode = ssl.CERT_REQUIRED
        sides.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = sides[0].wrap_bio(to_server, to_client, server_side=True)
    client = sides[1].wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


def node(folder: Path, *addresses: str) -> Path:
    make_authority(folder)
    make_node(folder, addresses)
    return folder


def test_nodes_of_one_authority_trust_each_other_at_their_addresses(tmp_path: Path) -> None:
    first = node(tmp_path / "first", "10.0.0.7")
    second = tmp_path / "second"
    second.mkdir()
    for name in ("ca.crt", "ca.key"):
        (second / name).write_bytes((first / name).read_bytes())
    make_node(second, ["10.0.0.8"])
    handshake(first, second, "10.0.0.7")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(first, second, "10.0.0.9")


def test_a_node_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(node(tmp_path / "ours", "10.0.0.7"), node(tmp_path / "theirs", "10.0.0.7"), "10.0.0.7")


def test_an_authority_is_made_once(tmp_path: Path) -> None:
    make_authority(tmp_path)
    before = (tmp_path / "ca.crt").read_bytes()
    make_authority(tmp_path)
    assert (tmp_path / "ca.crt").read_bytes() == before
    assert x509.load_pem_x509_certificate(before).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    node(tmp_path)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ca.key", "node.key")] == [0o600, 0o600]


def test_a_node_without_an_authority_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="certificates authority"):
        make_node(tmp_path, ["10.0.0.7"])
