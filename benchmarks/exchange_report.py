from typing import Any


def write_report(kept: Any, out: Any) -> None: ...
