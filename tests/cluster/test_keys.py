"""Mistakes in `cluster:`, `inject:` and `switch:` on the command line: one line each, with key, value and way out."""

import signal
import socket
import sys

import pytest
import trustme
import yaml

from paceline import cli

CLUSTER = {"nodes": 2, "workers": 1}
TLS = "security: {tls: {cert: a.pem, key: b.pem, ca: c.pem}}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A job on a cluster and one in this process. Data that is not there is told last of all."""
    monkeypatch.chdir(tmp_path)
    values = {"data": {"format": "criteo", "days": ["d.tsv"]}, "batch": {"global": 128, "local": 32}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**values, "cluster": CLUSTER}))
    (tmp_path / "local.yaml").write_text(yaml.safe_dump({**values, "workers": 2}))
    return tmp_path


def told(monkeypatch, capsys, job, *overrides):
    """(exit code, what `paceline train` says on stderr)."""
    monkeypatch.setattr(sys, "argv", ["paceline", "train", job, "--run-dir", "run", *overrides])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ended.value.code, capsys.readouterr().err


def is_told(monkeypatch, capsys, job, override, line):
    code, said = told(monkeypatch, capsys, job, override)
    assert (code, said) == (2, f"paceline: {line}\n")
    return True


NUMBERS = [
    (f"cluster.{key}={value}", f"cluster.{key}: {shown} is not allowed: input should be {wanted}")
    for key, least in (("nodes", 0), ("servers", 0), ("workers", 0), ("ahead", 0))
    for value, shown, wanted in (
        ("-1", "-1", f"greater than or equal to {least}"),
        (".nan", "nan", "a finite number"),
        ("1.5", "1.5", "a valid integer, got a number with a fractional part"),
        ("many", "'many'", "a valid integer, unable to parse string as an integer"),
    )
]
NUMBERS += [
    (f"cluster.{key}={value}", f"cluster.{key}: {shown} is not allowed: input should be {wanted}")
    for key, low in (("resources.cpus", "or equal to 0"), ("resources.gpus", "or equal to 0"), ("patience", "0"))
    for value, shown, wanted in (
        ("-1", "-1", f"greater than {low}"),
        (".nan", "nan", "a finite number"),
        (".inf", "inf", "a finite number"),
    )
]
KEYS = "(address, nodes, servers, workers, resources, security, rows, ahead, exchange, patience)"
COLLECTIVES = "goes over collectives, which are not encrypted, and security.tls asks for encryption"
WRONG = [
    *NUMBERS,
    ("cluster.ahead=9", "cluster.ahead: 9 is not allowed: input should be less than or equal to 8"),
    ("cluster.patience=0", "cluster.patience: 0 is not allowed: input should be greater than 0"),
    (
        "cluster.resources.cpus=0.00001",
        "cluster.resources.cpus: 1e-05 has more than four decimals, and Ray counts no finer; round it",
    ),
    (
        "cluster.resources.gpus=1.5",
        "cluster.resources.gpus: 1.5 must be a whole number above 1, for Ray divides one GPU only",
    ),
    *(
        (f"cluster.address={it}", f"cluster.address: '{it}' must be local, auto, HOST:PORT or ray://HOST:PORT")
        for it in ("somewhere", "ray://host", "tcp://host:1", "host:port")
    ),
    ("cluster.address=3", "cluster.address: 3 is not allowed: input should be a valid string"),
    ("cluster={nodes: 0}", "cluster: nodes and servers are 0: at least one process has to hold parameters"),
    ("cluster={nodes: 0, workers: 2}", "cluster: nodes and servers are 0: at least one process has to hold parameters"),
    ("cluster={nodes: 0, servers: 2}", "cluster: nodes and workers are 0: at least one process has to compute"),
    ("cluster=3", f"cluster: 3 is not allowed: write keys under it {KEYS}, or leave it out"),
    ("cluster.node=2", "cluster.node: unknown key; did you mean 'nodes'?"),
    ("cluster.resources.memory=3", "cluster.resources.memory: unknown key; known: cpus, gpus"),
    ("cluster.security.tokn=x", "cluster.security.tokn: unknown key; did you mean 'token'?"),
    ("cluster.rows=fp16", "cluster.rows: 'fp16' is not allowed: input should be 'fp32' or 'bf16'"),
    (
        "cluster.exchange=ring",
        "cluster.exchange: 'ring' is not allowed: input should be 'auto', 'rows', 'substitute' or 'push_pull'",
    ),
    *(
        (
            f"cluster={{nodes: 2, exchange: {it}, {TLS}}}",
            f"cluster: exchange: {it} {COLLECTIVES}; use exchange: push_pull (or auto, which takes it then)",
        )
        for it in ("rows", "substitute")
    ),
    ("cluster.security.token=3", "cluster.security.token: 3 is not allowed: input should be a valid string"),
    (
        "cluster.security.tls={cert: a.pem, key: b.pem}",
        "cluster.security.tls.ca: this key is needed",
    ),
    (
        "cluster.security.tls={cert: a.pem, key: b.pem, ca: c.pem, hostnam: x}",
        "cluster.security.tls.hostnam: unknown key; did you mean 'hostname'?",
    ),
    ("switch=[{at: 1}]", "switch.0.pace: this key is needed"),
    ("switch=[{pace: gba}]", "switch.0.at: this key is needed"),
    *(
        (
            f"switch=[{{at: {it}, pace: gba}}]",
            f"switch.0.at: {shown} must be a day (day_3, counted from day_0) or a number of samples, from 0",
        )
        for it, shown in (("day_x", "'day_x'"), ("-1", "-1"), ("1.5", "1.5"), (".nan", "nan"), ("true", "True"))
    ),
    ("switch=[{at: 5, pace: gba, when: now}]", "switch.0.when: unknown key; known: at, pace"),
    (
        "switch=[{at: 5, pace: fast}]",
        "switch.0.pace.name: 'fast' is not allowed: input should be 'sync', 'async', 'bounded_staleness',"
        " 'backup_workers', 'bulk_synchronous', 'gba', 'damped' or 'auto'",
    ),
    (
        "switch=[{at: 5, pace: {name: sync, bound: 3}}]",
        "switch.0.pace: the pace 'sync' has no option 'bound' (its options: none)",
    ),
    ("switch=gba", "switch: 'gba' is not allowed: input should be a valid list"),
    *(
        (f"inject=[{{slow: {it}, factor: 2}}]", f"inject.0: slow: '{it}' must be a worker, such as worker-2")
        for it in ("shard-0", "coordinator", "worker-x", "worker")
    ),
    *(
        (
            f"inject=[{{kill: {it}, at: 9}}]",
            f"inject.0: kill: '{it}' must be a worker, shard or node (worker-2), or coordinator",
        )
        for it in ("server-0", "helper-0", "head", "shard")
    ),
    *(
        (f"inject=[{{{it}}}]", f"inject.0: {shown} must be slow and factor, or kill and at")
        for it, shown in (
            ("slow: worker-0", "['slow']"),
            ("kill: worker-0", "['kill']"),
            ("kill: worker-0, at: 9, factor: 2", "['at', 'factor', 'kill']"),
            ("", "[]"),
        )
    ),
    ("inject=[{stop: worker-0, at: 9}]", "inject.0.stop: unknown key; known: at, factor, kill, slow"),
    (
        "inject=[{slow: worker-0, factor: 0.5}]",
        "inject.0.factor: 0.5 is not allowed: input should be greater than or equal to 1",
    ),
    *(
        (
            f"inject=[{{slow: worker-0, factor: .{it}}}]",
            f"inject.0.factor: {it} is not allowed: input should be a finite number",
        )
        for it in ("nan", "inf")
    ),
    (
        "inject=[{kill: worker-0, at: -1}]",
        "inject.0.at: -1 is not allowed: input should be greater than or equal to 0",
    ),
    (
        "inject=[{kill: worker-0, at: 1.5}]",
        "inject.0.at: 1.5 is not allowed: input should be a valid integer, got a number with a fractional part",
    ),
    (
        "inject=[worker-0]",
        "inject.0: 'worker-0' is not allowed: write keys under it (slow, factor, kill, at), or leave it out",
    ),
    ("inject=worker-0", "inject: 'worker-0' is not allowed: input should be a valid list"),
]


@pytest.mark.parametrize(("override", "line"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_told_with_its_key_and_what_would_do(folder, monkeypatch, capsys, override, line):
    assert is_told(monkeypatch, capsys, "cluster.yaml", override, f"command line: {line}")
    assert not (folder / "run").exists()


FILE = [
    ("workers: 7", "workers (7) is not what cluster makes of it (nodes + workers = 3); leave it out"),
    (
        "switch: [{at: 50, pace: gba}, {at: 5, pace: sync}]",
        "switch: the places [50, 5] are not in order of time",
    ),
    (
        "switch: [{at: day_3, pace: gba}, {at: day_1, pace: sync}]",
        "switch: the places [3, 1] are not in order of time",
    ),
]


@pytest.mark.parametrize(("text", "line"), FILE, ids=[text for text, _ in FILE])
def test_keys_that_do_not_go_together_are_told_for_the_file(folder, monkeypatch, capsys, text, line):
    with open(folder / "cluster.yaml", "a") as file:
        file.write(f"{text}\n")
    code, said = told(monkeypatch, capsys, "cluster.yaml")
    assert (code, said) == (2, f"paceline: cluster.yaml: {line}\n")


def test_a_wrong_line_of_the_file_is_named(folder, monkeypatch, capsys):
    job = folder / "cluster.yaml"
    job.write_text(job.read_text().replace("nodes: 2", "nodes: -2"))
    number = job.read_text().splitlines().index("  nodes: -2") + 1
    told_line = "cluster.nodes: -2 is not allowed: input should be greater than or equal to 0"
    code, said = told(monkeypatch, capsys, "cluster.yaml")
    assert (code, said) == (2, f"paceline: cluster.yaml, line {number}: {told_line}\n")


ABSENT = [
    (
        "cluster.yaml",
        f"{{{how}-{count}, {more}}}",
        f"there is no {what}-{count}; the cluster has {count}, from {what}-0",
    )
    for how, what, count, more in (
        ("slow: worker", "worker", 3, "factor: 2"),
        ("kill: worker", "worker", 3, "at: 9"),
        ("kill: shard", "shard", 2, "at: 9"),
        ("kill: node", "node", 2, "at: 9"),
    )
]
LOCAL = "is a process of a cluster (cluster:); here are worker threads only"
ABSENT += [
    ("local.yaml", "{kill: shard-0, at: 9}", f"shard-0 {LOCAL}"),
    ("local.yaml", "{kill: node-1, at: 9}", f"node-1 {LOCAL}"),
    ("local.yaml", "{kill: coordinator, at: 9}", f"coordinator {LOCAL}"),
    ("local.yaml", "{kill: worker-2, at: 9}", "there is no worker-2; there are 2 workers, from worker-0"),
    ("local.yaml", "{slow: worker-2, factor: 2}", "there is no worker-2; there are 2 workers, from worker-0"),
    (
        "local.yaml",
        "{kill: worker-0, at: 9}, {kill: worker-1, at: 0}",
        "every worker would be killed, and the run could not end; leave one",
    ),
]


@pytest.mark.parametrize(("job", "faults", "line"), ABSENT, ids=[f"{job} {faults}" for job, faults, _ in ABSENT])
def test_a_fault_of_a_process_that_is_not_there_is_told(folder, monkeypatch, capsys, job, faults, line):
    (folder / "d.tsv").write_text("1" + "\t1" * 13 + "\tab" * 26 + "\n")
    assert is_told(monkeypatch, capsys, job, f"inject=[{faults}]", f"inject: {line}")


def test_secrets_and_certificates_that_are_none_are_told(folder, monkeypatch, capsys):
    """Before Ray is looked for and before any process is started."""
    (folder / "blank").write_text(" \n")
    (folder / "bytes").write_bytes(b"\xff\x00\xfe")
    elsewhere = "paths are relative to the configuration file"
    empty = "give a secret, env:NAME or file:PATH, or leave it out"
    characters = "it may have printable ASCII characters only; make one with `openssl rand -hex 32`"
    for token, line in (
        ("env:NOT_SET", "the environment variable 'NOT_SET' is not set; export it where the command runs"),
        ("file:absent", f"'absent' cannot be read (No such file or directory); {elsewhere}"),
        ("file:blank", f"it is empty in file:blank; {empty}"),
        ("''", f"it is empty; {empty}"),
        ("file:bytes", characters),
        ("Schlüssel", characters),
    ):
        key = "cluster.security.token"
        assert is_told(monkeypatch, capsys, "cluster.yaml", f"{key}={token}", f"{key}: {line}")
    ca, made = trustme.CA(), trustme.CA().issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    ca.issue_cert("127.0.0.1").private_key_pem.write_to_path(folder / "other.pem")
    pair = "are no certificate and its key in PEM, without a passphrase"
    for cert, key, authority, begin in (
        ("absent", "key.pem", "ca.pem", f".cert: 'absent' cannot be read (No such file or directory); {elsewhere}"),
        ("cert.pem", "absent", "ca.pem", f".key: 'absent' cannot be read (No such file or directory); {elsewhere}"),
        ("cert.pem", "key.pem", "absent", f".ca: 'absent' cannot be read (No such file or directory); {elsewhere}"),
        ("bytes", "key.pem", "ca.pem", f": 'bytes' and 'key.pem' {pair} ("),
        ("cert.pem", "other.pem", "ca.pem", f": 'cert.pem' and 'other.pem' {pair} ("),
        ("cert.pem", "key.pem", "blank", ".ca: 'blank' is no certificate in PEM ("),
    ):
        tls = f"{{cert: {cert}, key: {key}, ca: {authority}}}"
        code, said = told(monkeypatch, capsys, "cluster.yaml", f"cluster.security.tls={tls}")
        assert code == 2
        assert said.startswith(f"paceline: cluster.security.tls{begin}"), said
        assert said.count("\n") == 1


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_at_once(folder, monkeypatch, capsys, scheme):
    monkeypatch.setitem(sys.modules, "ray", None)  # it would try for minutes
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{reserved.getsockname()[1]}"
        line = f"cluster.address: nobody is to be reached at '{address}' (Connection refused); start Ray there"
        line += " (docs/running-on-a-cluster.md), or use address: local"
        assert is_told(monkeypatch, capsys, "cluster.yaml", f"cluster.address={address}", line)
    code, said = told(monkeypatch, capsys, "cluster.yaml", f"cluster.address={scheme}head..lan:6379")
    assert code == 2
    assert "nobody is to be reached" in said
    code, said = told(monkeypatch, capsys, "cluster.yaml", f"cluster.address={scheme}127.0.0.1:99999")
    assert code == 2
    assert said.startswith(f"paceline: cluster.address: nobody is to be reached at '{scheme}127.0.0.1:99999' (")


def test_a_cluster_without_ray_is_told(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "paceline.cluster.placing", raising=False)
    code, said = told(monkeypatch, capsys, "cluster.yaml")
    assert code == 2
    assert said.startswith("paceline: cluster: Ray is not installed (")
    assert said.endswith("; pip install 'paceline[cluster]'\n")
