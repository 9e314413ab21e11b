"""The manifest for KubeRay: known fields at their places, and commands, versions, sizes and paths that fit together.

It is not applied to a cluster. The schema beside this file says where its fields are from.
"""

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from typer.main import get_command

from paceline.cli import app
from paceline.jobfile import load_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())
DOCUMENTS = {each["kind"]: each for each in yaml.safe_load_all((ROOT / "examples/cluster/kuberay.yaml").read_text())}
GUIDE = (ROOT / "docs" / "running-on-a-cluster.md").read_text().split("## Kubernetes", 1)[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def is_valid(document):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def paths(value, place=()):
    """The place of every value in a document."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from paths(below, (*place, key))


def at(document, place):
    for key in place:
        document = document[key]
    return document


def changed(document, place, value):
    document = copy.deepcopy(document)
    at(document, place[:-1])[place[-1]] = value
    return document


def spec():
    return DOCUMENTS["RayJob"]["spec"]


def groups():
    """The head's group, then those of workers."""
    cluster = spec()["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_every_field_is_known_at_its_place():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert DOCUMENTS.keys() == {"Secret", "PersistentVolumeClaim", "RayJob"}
    for kind, document in DOCUMENTS.items():
        chosen = {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}  # says what is wrong, not that nothing fits
        jsonschema.Draft202012Validator(chosen).validate(document)
        assert is_valid(document)


FREE = ("rayStartParams", "stringData")  # names of their own


def test_the_schema_would_notice():
    """A key that nobody knows, anywhere; a value of another type; a field that is needed and missing."""
    tried = 0
    for document in DOCUMENTS.values():
        for place in paths(document):
            value = at(document, place)
            if isinstance(value, dict) and not (place and place[-1] in FREE):
                assert not is_valid(changed(document, (*place, "unheardOf"), "x")), place
            if place:
                other = ["x"] if not isinstance(value, list) else "x"
                assert not is_valid(changed(document, place, other)), place
                tried += 1
    assert tried > 100
    for place in (
        ("kind",),
        ("spec", "rayClusterSpec", "headGroupSpec"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template"),
        ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "name"),
    ):
        document = copy.deepcopy(DOCUMENTS["RayJob"])
        del at(document, place[:-1])[place[-1]]
        assert not is_valid(document), place
    for place, wrong in (
        (("spec", "backoffLimit"), "0"),
        (("spec", "submissionMode"), "K8sJob"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "dashboard-host"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), 2.5),
    ):
        assert not is_valid(changed(DOCUMENTS["RayJob"], place, wrong)), place


def entrypoint():
    """(job file, options by name, overrides) of the command that the job runs."""
    program, command, job, *words = shlex.split(spec()["entrypoint"])
    assert program in PROJECT["scripts"]
    known = {name: option for option in get_command(app).commands[command].params for name in option.opts}
    options, overrides, left = {}, [], iter(words)
    for word in left:
        if word.startswith("-"):
            assert word in known, f"`paceline {command}` has no option {word}"
            options[word] = True if known[word].is_flag else next(left)
        else:
            overrides.append(word)
    return command, job, options, overrides


def test_the_command_has_options_and_keys_that_there_are():
    command, job, options, overrides = entrypoint()
    assert command == "train"
    assert "--resume" not in options, "the first start is none"
    assert "--resume" in {name for option in get_command(app).commands["train"].params for name in option.opts}
    config = load_config(ROOT / "examples" / "cluster" / "job.yaml", overrides)  # any job does
    (workers,) = spec()["rayClusterSpec"]["workerGroupSpecs"]
    assert config.cluster.address == "auto"
    assert config.cluster.nodes == workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    head = groups()[0]["template"]["spec"]["containers"][0]
    (variable,) = head["env"]
    assert config.cluster.security.token == f"env:{variable['name']}"
    named = variable["valueFrom"]["secretKeyRef"]
    assert named["name"] == DOCUMENTS["Secret"]["metadata"]["name"]
    assert named["key"] in DOCUMENTS["Secret"]["stringData"]
    assert spec()["backoffLimit"] == 0, "a second start without --resume would be refused"
    for shared in (job, options["--run-dir"]):
        assert PurePosixPath("/shared") in PurePosixPath(shared).parents


def test_all_pods_mount_the_claim_at_one_path_and_run_one_image():
    claim = DOCUMENTS["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    images = set()
    for group in groups():
        pod = group["template"]["spec"]
        (volume,), (container,) = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
        images.add(container["image"])
    assert len(images) == 1
    assert "under `/shared`" in " ".join(GUIDE.split())
    assert f"docker build -f Dockerfile -t {images.pop().removesuffix(':latest')} ." in GUIDE
    assert "`paceline pace /shared/run gba`" in GUIDE
    assert entrypoint()[2]["--run-dir"] == "/shared/run"


def test_there_is_room_for_all_processes_whichever_pod_they_are_put_in():
    """Ray is asked for a CPU for the coordinator and `resources.cpus` for each node; it counts a pod's CPUs."""
    config = load_config(ROOT / "examples" / "cluster" / "job.yaml", entrypoint()[3])
    head, workers = groups()
    cpus = []
    for group, pods in ((head, 1), (workers, workers["replicas"])):
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], "what Ray counts is what there is"
        cpus += [int(resources["limits"]["cpu"])] * pods
    assert set(cpus) == {2}
    assert "Each pod has two CPUs" in GUIDE
    assert sum(cpus) >= 1 + config.cluster.nodes * config.cluster.resources.cpus
    assert min(cpus) >= 1 + config.cluster.resources.cpus


def test_the_version_of_ray_is_one_that_the_package_takes_and_the_image_has():
    version = spec()["rayClusterSpec"]["rayVersion"]
    (image,) = re.findall(r"FROM rayproject/ray:(\S+)-py(\d)(\d+)$", GUIDE, re.MULTILINE)
    assert image[0] == version
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{image[1]}.{image[2]}.0")
    needed = [Requirement(each) for each in PROJECT["optional-dependencies"]["cluster"]]
    (ray,) = [each for each in needed if each.name == "ray"]
    assert ray.specifier.contains(version)
    assert (
        f"with the settings of Ray {version.rpartition('.')[0]})"
        in (ROOT / "docs" / "running-on-a-cluster.md").read_text()
    ), "one version of Ray in the whole guide"


@pytest.mark.parametrize("name", ["gcs-server", "dashboard", "client"])
def test_ports_are_those_of_ray(name):
    ports = {each["name"]: each["containerPort"] for each in groups()[0]["template"]["spec"]["containers"][0]["ports"]}
    assert ports[name] == {"gcs-server": 6379, "dashboard": 8265, "client": 10001}[name]
