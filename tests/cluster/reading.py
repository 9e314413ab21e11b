"""The example in docs/flight.md that reads rows of a running job with pyarrow alone, run as a reader would run it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

FLIGHT = Path(__file__).parents[2] / "docs" / "flight.md"
SETTINGS = "token, tls = Path(sys.argv[1]), None, None"
VALUES = '("68fd1e64", "05db9164")'


def example():
    """The code, as it stands in the documentation."""
    section = FLIGHT.read_text().split("## Reading rows of a running job", 1)[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert code.count(SETTINGS) == code.count(VALUES) == 1
    assert "paceline" not in code
    return code


def read_rows(run, values, token=None, tls=None):
    """What the example, with settings of its own as its comment says and with these values of C1, has to say of a run
    directory: (its exit code, {address: statistics}, {value: its first weights}, stderr)."""
    code = example().replace(SETTINGS, f"token, tls = Path(sys.argv[1]), {token!r}, {tls!r}")
    script = run / "read_rows.py"
    script.write_text(code.replace(VALUES, repr(tuple(values))))
    found = subprocess.run([sys.executable, str(script), str(run)], capture_output=True, text=True)
    shards, rows = {}, {}
    for line in found.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if rest.startswith("{"):
            shards[word] = ast.literal_eval(rest)
        else:
            rows[word] = ast.literal_eval(rest)
    return found.returncode, shards, rows, found.stderr
