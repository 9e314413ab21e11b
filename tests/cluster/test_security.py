"""Who is let in: a token in every call, certificates on both sides, and nobody else."""

import json

import numpy as np
import pyarrow.flight as fl
import pytest
import trustme
from parties import Party, locally, on_cluster, party
from tools import job, synthetic

from paceline.cluster.credentials import read_security
from paceline.clusterconfig import ClusterConfig
from paceline.errors import ClusterLost, ConfigError
from paceline.exchange.far import call
from paceline.exchange.security import Security
from paceline.exchange.shards import PeerLost, Stream


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def papers(ca, token):
    """What a process holds whose certificate `ca` has signed."""
    made = ca.issue_cert("127.0.0.1")
    cert = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    return Security(token, cert, made.private_key_pem.bytes(), ca.cert_pem.bytes())


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def guarded(log, ca):
    with party(job(log), nodes=1, security=papers(ca, "a secret")) as made:
        yield made


def test_with_token_and_certificates_the_numbers_are_the_same(log, ca):
    config = job(log)
    expected_rows, expected_dense, _ = locally(config, log)
    with party(config, nodes=2, security=papers(ca, "a secret")) as made:
        rows, dense, _ = on_cluster(config, log, made)
    assert rows.keys() == expected_rows.keys()
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert dense.equal(expected_dense)


def refused(security, address):
    """Whether every door of a service is shut: actions, rows for reading, and streams."""
    with pytest.raises(ClusterLost):
        call(security, address, "statistics")
    with security.connect(address) as client, pytest.raises((fl.FlightError, OSError)):
        client.do_get(fl.Ticket(json.dumps({"ids": [1]}).encode())).read_all()
    with pytest.raises(PeerLost):
        read_over_a_stream(security, address)
    return True


def read_over_a_stream(security, address):
    stream = Stream(security, address, {"kind": "worker", "generation": 1})
    stream.send({"op": "read"}, [np.zeros(1, np.int64)])
    stream.receive()


@pytest.mark.parametrize("whose", ["shard", "office"])
def test_strangers_are_refused(guarded, ca, whose):
    address = guarded.addresses[0] if whose == "shard" else f"127.0.0.1:{guarded.office.port}"
    ours = papers(ca, "a secret")
    if whose == "shard":
        assert call(ours, address, "statistics")["ids"] == 0
    assert refused(Security("a secret"), address), "no TLS at all"
    assert refused(papers(ca, None), address), "no token"
    assert refused(papers(ca, "another secret"), address), "a wrong token"
    assert refused(Security("a secret", None, None, ours.ca), address), "no certificate"
    assert refused(papers(trustme.CA(), "a secret"), address), "a certificate that another authority signed"


def test_a_token_alone_is_asked_for_too(log):
    made = Party(job(log), nodes=1, security=Security("a secret"))
    try:
        made.begin()
        assert call(Security("a secret"), made.addresses[0], "statistics")["generation"] == 1
        assert refused(Security(), made.addresses[0])
        assert refused(Security("another"), made.addresses[0])
    finally:
        made.end()


def test_secrets_are_read_from_where_the_configuration_says(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("OUR_TOKEN", "of the environment")

    def token(value):
        return read_security(ClusterConfig(security={"token": value}), tmp_path).token

    assert token("file:token") == "of a file"
    assert token("env:OUR_TOKEN") == "of the environment"
    assert token("the secret itself") == "the secret itself"
    with pytest.raises(ConfigError, match=r"security\.token: the environment variable 'NOT_SET'"):
        token("env:NOT_SET")
    with pytest.raises(ConfigError, match=r"security\.token: 'absent'"):
        token("file:absent")
    tls = {"cert": "absent.pem", "key": "k.pem", "ca": "ca.pem"}
    with pytest.raises(ConfigError, match=r"security\.tls\.cert: 'absent\.pem'"):
        read_security(ClusterConfig(security={"tls": tls}), tmp_path)


def test_a_secret_is_not_written_into_the_run_directory(log):
    def written(token):
        return job(log, cluster={"nodes": 1, "security": {"token": token}}, workers=1).to_yaml()

    assert "a secret" not in written("a secret")
    assert "env:OUR_TOKEN" in written("env:OUR_TOKEN")


def test_encryption_without_a_certificate_of_ones_own_is_refused(guarded, ca):
    """The caller trusts the authority and knows the token, but shows no certificate."""
    ours = papers(ca, "a secret")
    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer a secret")])
    for address in (guarded.addresses[0], f"127.0.0.1:{guarded.office.port}"):
        with (
            fl.FlightClient(f"grpc+tls://{address}", tls_root_certs=ours.ca) as client,
            pytest.raises((fl.FlightError, OSError)),
        ):
            list(client.do_action(fl.Action("statistics", b""), options))


def test_who_may_read_rows_may_not_give_orders(log):
    """A client with the token reads; what changes or ends a job asks for what only its own processes know."""
    made = Party(job(log), nodes=1, security=Security("a secret", inner="known inside"))
    try:
        made.begin()
        reader = Security("a secret")
        with reader.connect(made.addresses[0]) as client:
            assert client.do_get(fl.Ticket(json.dumps({"ids": [1, 2]}).encode())).read_all().num_rows == 2
        assert call(reader, made.addresses[0], "statistics")["version"] == 0
        for action in ("reset", "write", "take", "counted", "die"):
            with pytest.raises(ClusterLost, match="own processes"):
                call(reader, made.addresses[0], action)
        for address in (made.addresses[0], f"127.0.0.1:{made.office.port}"):
            with pytest.raises(PeerLost, match="own processes"):
                read_over_a_stream(reader, address)
    finally:
        made.end()


def test_a_certificate_may_name_a_host_instead_of_addresses(log, ca):
    made = ca.issue_cert("paceline.internal")
    cert = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    named = Security(None, cert, made.private_key_pem.bytes(), ca.cert_pem.bytes(), "paceline.internal")
    with party(job(log), nodes=1, security=named) as there:
        assert call(named, there.addresses[0], "statistics")["generation"] == 1
        assert refused(Security(None, cert, made.private_key_pem.bytes(), ca.cert_pem.bytes()), there.addresses[0])
