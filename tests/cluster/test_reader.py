"""Rows of a running job are read by any Arrow Flight client, as the documentation shows it."""

import gzip
import json

import numpy as np
import pytest
import trustme
import xxhash
from parties import on_cluster, party
from reading import read_rows
from tools import job, synthetic

from paceline.exchange.security import Security

UNSEEN = "never-in-any-log"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def papers(folder):
    """Certificates as files: (Security, names as the example takes them)."""
    ca = trustme.CA()
    made = ca.issue_cert("127.0.0.1")
    texts = (ca.cert_pem.bytes(), b"".join(p.bytes() for p in made.cert_chain_pems), made.private_key_pem.bytes())
    paths = [folder / name for name in ("ca.pem", "cluster.pem", "cluster.key")]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    ca_text, cert, key = texts
    return Security("a secret", cert, key, ca_text), tuple(map(str, paths))


def values_of(log):
    """Some of C1 that occur on the first day."""
    with gzip.open(log / "day_0.tsv.gz", "rt") as file:
        return sorted({line.split("\t")[14] for line in file} - {""})[:6]


def id_of(value):
    """Of a value of C1 (docs/data.md), as an int64."""
    number = xxhash.xxh64_intdigest(value.encode(), seed=xxhash.xxh64_intdigest(b"C1"))
    return int(np.uint64(number).astype(np.int64))


@pytest.mark.parametrize("how", ["open", "token", "token and TLS"])
def test_the_documented_example_reads_the_rows_of_the_tables(tmp_path, log, how):
    secured, files = papers(tmp_path)
    security = {"open": Security(), "token": Security("a secret"), "token and TLS": secured}[how]
    tls, token = files if how == "token and TLS" else None, None if how == "open" else "a secret"
    values = [*values_of(log), UNSEEN]
    with party(job(log), nodes=1, servers=2, workers=1, security=security) as made:
        on_cluster(job(log), log, made)
        addresses = dict(zip(("node-0", "server-0", "server-1"), made.addresses, strict=True))
        told = {"coordinator": f"127.0.0.1:{made.office.port}", **addresses, "helper-0": None}
        processes = {name: {"address": address, "pid": 1} for name, address in told.items()}
        (tmp_path / "processes.json").write_text(json.dumps(processes))
        tables, before = made.rows(), made.store.ids
        code, shards, rows, errors = read_rows(tmp_path, values, token, tls)
        assert code == 0, errors
        assert list(shards) == made.addresses
        assert {told["version"] for told in shards.values()} == {made.store.version}
        assert sum(told["ids"] for told in shards.values()) == len(tables) == made.store.ids == before
        assert rows.keys() == set(values)
        for value in values[:-1]:
            np.testing.assert_array_equal(np.float32(rows[value]), tables[id_of(value)][:4].astype(np.float32))
            assert tables[id_of(value)][-1] > 0, "it was trained on"
        assert id_of(UNSEEN) not in tables
        assert np.isfinite(rows[UNSEEN]).all()
        if how != "open":
            for wrong in (None, "another"):
                code, shards, rows, errors = read_rows(tmp_path, values, wrong, tls)
                assert (code != 0, shards, rows) == (True, {}, {})
                assert "FlightUnauthenticatedError" in errors
