"""A job's processes on machines of their own (network namespaces), without Ray: for tests that cut the network.

    python machines.py node SPEC.json HOST          serves a node; reads {"generation", "shards", "office", "meeting"}
    python machines.py chief SPEC.json HOST         serves the coordinator; reads {"generation", "shards", "resume"}

Both print a JSON object when they serve; the coordinator prints what the run says, and at last {"came": what, ...}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from paceline.cluster.chief import Chief
from paceline.cluster.node import Node
from paceline.cluster.spec import NodeSpec, roles
from paceline.exchange.security import Security


class Machines:
    """A coordinator on machine 0 and a node on each machine of `network`; use as a context manager."""

    def __init__(self, network, config, base, run_dir):
        self.network, self.folder = network, base
        self.generation, self.said = 0, []
        values, count = config.to_yaml(), len(network.addresses)
        what = {"config": values, "base": str(base), "run_dir": str(run_dir)}
        self.chief = self._process(0, "chief", what)
        self.nodes = [
            self._process(
                i, "node", {"name": name, "config": values, "shards": count, "shard": shard, "worker": worker}
            )
            for i, (name, shard, worker) in enumerate(roles(count, 0, 0))
        ]

    def __enter__(self):
        self.served = self._heard(self.chief)
        self.shards = [self._heard(node)["address"] for node in self.nodes]
        return self

    def __exit__(self, *_):
        for process in (self.chief, *self.nodes):
            process.kill()
            process.communicate()

    def run(self, resume=False, on_rows=lambda rows: None):
        """(what the coordinator's run has come to, what it came with) in a generation. on_rows: called as rows are
        read."""
        self.generation += 1
        self._tell(self.chief, generation=self.generation, shards=self.shards, resume=resume)
        for node in self.nodes:
            self._tell(node, generation=self.generation, shards=self.shards, **self.served)
        while "came" not in (told := self._heard(self.chief)):
            if told["what"] == "tick":
                on_rows(told["values"][0]["rows"])
            elif told["what"] == "note":
                self.said.append(told["values"][0])
        return told["came"], told["value"]

    def _process(self, machine, role, values):
        path = self.folder / f"{role}-{machine}.json"
        path.write_text(json.dumps(values))
        host = self.network.addresses[machine]
        command = self.network.inside(machine, sys.executable, __file__, role, str(path), host)
        with open(path.with_suffix(".log"), "w") as errors:  # gRPC tells of every cut there
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)

    @staticmethod
    def _tell(process, **values):
        process.stdin.write(json.dumps(values) + "\n")
        process.stdin.flush()

    @staticmethod
    def _heard(process):
        line = process.stdout.readline()
        assert line, f"a process has ended: {process.args}"
        return json.loads(line)


def say(**values):
    print(json.dumps(values, default=str), flush=True)


def serve_node(values, host):
    node = Node(NodeSpec(**values), host)
    say(address=node.start()[0])
    for line in sys.stdin:
        node.begin(**json.loads(line))


def serve_chief(values, host):
    chief = Chief(values["config"], values["base"], values["run_dir"], Security(), host)
    say(office=chief.start()[0], meeting=chief.meeting())
    for line in sys.stdin:
        asked, came = json.loads(line), []
        asked |= {"recovered": (0, 0.0, None), "workers": len(asked["shards"])}
        run = threading.Thread(target=lambda: came.append(chief.run(**asked)))  # noqa: B023
        run.start()
        while run.is_alive():
            run.join(0.05)
            for what, told in chief.messages():
                say(what=what, values=told)
        say(came=came[0][0], value=came[0][1])


if __name__ == "__main__":
    serve = {"node": serve_node, "chief": serve_chief}[sys.argv[1]]
    serve(json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])
