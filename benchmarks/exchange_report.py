"""The tables and the plot of `exchange.py`, out of its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
NAMES = {"push_pull": "push/pull", "rows": "rows", "substitute": "partial sums", "auto": "auto"}
SPANS = {"first": "1", "early": "21-30", "late": "51-60", "long": "391-400"}
WITHOUT_VALUES = ("ids", "positions", "lengths")
GOAL = 0.687


def write_report(kept: Mapping[str, Any], out: Path) -> None:
    """table.md and plot.png in `out`."""
    results: list[Result] = kept["results"]
    parts = [
        "# Bytes that a node sends in a step",
        "Means over all nodes, in 1,000 bytes; one batch of 512 samples a node and step. Arrays: bytes of arrays; wire:"
        " what the node's network interface sent, headers and acknowledgements included. Saved: against push and pull."
        " Made by `python benchmarks/exchange.py`.",
        "## LR and FM, 100 ids a sample, 4 nodes\n\n" + _headline(results),
        "## Over nodes and ids a sample (8 fields with one id, 2 with the rest), steps 21 to 30\n\n" + _curve(results),
        "## Is `auto` ever dearer than the cheapest?\n\nBytes of arrays, steps 21 to 30.\n\n" + _models(results),
        "## Predicted beside measured, by kind\n\n4 nodes, 100 ids a sample, steps 21 to 30.\n\n" + _kinds(results),
    ]
    if kept["codes"]:
        parts.append("## Codes of ids and positions\n\n" + _codes(kept["codes"]))
    (out / "table.md").write_text("\n\n".join(parts) + "\n")
    if any("early" in r for r in results):
        plot(results, out / "plot.png")


def total(span: Result, what: str = "sent") -> float:
    """Bytes of arrays of all kinds."""
    return float(sum(span[what].values()))


def values(span: Result) -> float:
    """Without ids and positions."""
    return float(sum(n for kind, n in span["sent"].items() if kind not in WITHOUT_VALUES))


def settled(result: Result) -> Result:
    """Steps 21 to 30, or what there is instead."""
    found: Result = next(result[span] for span in ("early", "first") if span in result)
    return found


def find(results: Iterable[Result], way: str, nodes: int, **job: Any) -> Result | None:
    """The result of a job, of those with the most steps; all that is not told is as in the curve."""
    wanted = {"bags": 2, "alpha": 1.1, **job}
    there = [
        r
        for r in results
        if (r["way"], r["nodes"]) == (way, nodes) and all(r["job"][key] == value for key, value in wanted.items())
    ]
    return max(there, key=lambda r: int(r["steps"]), default=None)


def _headline(results: list[Result]) -> str:
    lines = []
    for model in ("lr", "fm"):
        for alpha, bags in ((1.1, 2), (1.1, 1), (1.0, 2), (0.8, 2)):
            job = {"model": model, "ids": 100, "alpha": alpha, "bags": bags}
            pushed, summed = (find(results, way, 4, **job) for way in ("push_pull", "substitute"))
            for name, steps in SPANS.items():
                if pushed is None or summed is None or name not in pushed or name not in summed:
                    continue
                a, b = pushed[name], summed[name]
                sent = b["sent"]
                cells = [model, str(alpha), str(bags), steps, _k(total(a)), _k(a["wire"]), _k(values(b))]
                cells += [_k(sent["ids"]), _k(sent["positions"]), _k(total(b)), _k(b["wire"])]
                cells += [_saved(values(b), values(a)), _saved(total(b), total(a)), _saved(b["wire"], a["wire"])]
                lines.append(cells)
    heads = ["model", "exponent", "bags", "steps", "push/pull arrays", "wire", "sums: values", "ids", "positions"]
    return _table([*heads, "arrays", "wire", "saved, values", "saved, arrays", "saved, wire"], lines)


def _curve(results: list[Result]) -> str:
    lines = []
    for model in ("lr", "fm"):
        for nodes in (2, 3, 4):
            for ids in (10, 30, 100, 300):
                found = {way: find(results, way, nodes, model=model, ids=ids) for way in NAMES}
                if any(r is None for r in found.values()):
                    continue
                spans = {way: settled(r) for way, r in found.items() if r is not None}
                wire = {way: span["wire"] for way, span in spans.items()}
                saved = [_saved(f(spans["auto"]), f(spans["push_pull"])) for f in (values, total)]
                auto = found["auto"] or {}
                cells = [
                    model,
                    str(nodes),
                    str(ids),
                    *(_k(wire[way]) for way in NAMES),
                    "/".join(auto["modes"].values()),
                ]
                lines.append([*cells, *saved, _saved(wire["auto"], wire["push_pull"])])
    heads = ["model", "nodes", "ids", *(f"{name}, wire" for name in NAMES.values()), "auto is"]
    return _table([*heads, "saved, values", "saved, arrays", "saved, wire"], lines)


def _models(results: list[Result]) -> str:
    lines, dearer = [], 0
    keys = {(r["job"]["ids"], r["job"]["bags"], r["job"]["alpha"], r["job"]["model"], r["nodes"]): 0 for r in results}
    for ids, bags, alpha, model, nodes in sorted(keys, key=lambda k: (k[1] != 0, *k[:2], k[4], -k[2], k[3])):
        job = {"model": model, "ids": ids, "bags": bags, "alpha": alpha}
        found = {way: find([r for r in results if r["steps"] <= 60], way, nodes, **job) for way in NAMES}
        if any(r is None for r in found.values()):
            continue
        sent = {way: total(settled(r)) for way, r in found.items() if r is not None}
        dearer += sent["auto"] > min(sent.values())
        auto = found["auto"] or {}
        shape = f"{ids} ids, {bags} bags" if bags else f"{ids} one-hot"
        over = f"{sent['auto'] / min(sent.values()) - 1:.2%}"
        modes = "/".join(auto["modes"].values())
        lines.append([model, shape, str(alpha), str(nodes), *(_k(sent[way]) for way in NAMES), modes, over])
    heads = ["model", "data", "exponent", "nodes", *NAMES.values(), "auto is", "above the cheapest"]
    said = f"`auto` sent more than the cheapest in {dearer} of {len(lines)} cases."
    return f"{said}\n\n{_table(heads, lines)}"


def _kinds(results: list[Result]) -> str:
    lines = []
    for model in ("lr", "fm", "deepfm"):
        for way in ("push_pull", "rows", "substitute"):
            result = find([r for r in results if r["steps"] <= 60], way, 4, model=model, ids=100)
            if result is None:
                continue
            span = settled(result)
            told = dict(span["predicted"])
            if way == "push_pull":  # the rule knows both directions together
                for kind, other in (("row_gradients", "rows"), ("dense_gradients", "dense")):
                    told[kind] = told[other] = told.get(other, 0.0) / 2
            for kind, sent in span["sent"].items():
                if sent or told.get(kind):
                    lines.append([model, NAMES[way], kind, _k(told.get(kind, 0.0)), _k(sent)])
            lines.append([model, NAMES[way], "all", _k(total(span, "predicted")), _k(total(span))])
            lines.append([model, NAMES[way], "wire", "", f"{_k(span['wire'])} (+{span['wire'] / total(span) - 1:.1%})"])
    return _table(["model", "way", "kind", "predicted", "measured"], lines)


def _codes(found: list[Result]) -> str:
    lines = []
    for each in found:
        ids, kept = each["distinct"], each["distinct"] - each["fresh"]
        bits = f"{8 * (each['ids'] - 8 * each['fresh']) / kept:.1f}" if kept > ids / 10 else "-"
        cells = [
            SPANS[each["span"]],
            f"{ids:,.0f}",
            f"{each['fresh']:,.0f}",
            _k(each["ids_full"]),
            _k(each["ids_numbers"]),
        ]
        cells += [_k(each["ids"]), bits, _k(each["positions_packed"]), _k(each["positions"])]
        times = ("name_ms", "read_ms", "lookup_ms", "encode_ms", "decode_ms", "encode_equal_ms")
        lines.append([*cells, *(f"{each[kind]:.1f}" for kind in times)])
    heads = ["steps", "distinct ids", "new", "8 bytes each", "numbers in equal bits", "as sent", "bits of a known id"]
    heads += [
        "positions in equal bits",
        "as sent",
        "name ms",
        "read ms",
        "look up all ms",
        "encode ms",
        "decode ms",
        "equal bits ms",
    ]
    note = (
        "A worker's batch of 100 ids a sample to 4 shards; milliseconds of one core for all of it (medians): to name"
        " the ids, to read the names (which looks up new ids only) and, for comparison, to look up all of them; to code"
        " positions and to read them and, for comparison, to code them in equal bits."
        f" The worker's lists take {found[-1]['worker_bytes_an_id']:.0f} bytes an id."
    )
    return f"{note}\n\n{_table(heads, lines)}"


def plot(results: list[Result], path: Path) -> None:
    """Left: bytes on the wire over ids a sample on 4 nodes; right: what `auto` saves against push and pull."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for row, model in zip(figure.subplots(2, 2), ("lr", "fm"), strict=True):
        sent, saved = row
        measure = "wire" if any(settled(r)["wire"] for r in results) else "arrays"

        def size(result: Result, by: str = measure) -> float:
            return float(settled(result)["wire"]) if by == "wire" else total(settled(result))

        short = [r for r in results if r["steps"] <= 60 and r["job"]["model"] == model]
        for way, style in zip(NAMES, ("o-", "s-", "^-", "x--"), strict=True):
            points = [(ids, find(short, way, 4, ids=ids)) for ids in (10, 30, 100, 300)]
            line = [(ids, size(r) / 1e3) for ids, r in points if r is not None]
            if line:
                sent.plot(*zip(*line, strict=True), style, label=NAMES[way], linewidth=1 if way == "auto" else 1.8)
        sent.set(xscale="log", yscale="log", xlabel="ids a sample", ylabel=f"KB a node and step ({measure})")
        sent.set_title(f"{model.upper()}, 4 nodes, steps 21 to 30")
        for nodes in (2, 3, 4):
            line = []
            for ids in (10, 30, 100, 300):
                auto, pushed = (find(short, way, nodes, ids=ids) for way in ("auto", "push_pull"))
                if auto is not None and pushed is not None:
                    line.append((ids, 100 * (1 - size(auto) / size(pushed))))
            if line:
                saved.plot(*zip(*line, strict=True), "o-", label=f"{nodes} nodes")
        saved.axhline(100 * GOAL, color="grey", linestyle=":", label=f"{GOAL:.1%} (the paper's claim)")
        saved.set(xscale="log", xlabel="ids a sample", ylabel=f"% fewer bytes ({measure})", ylim=(0, 100))
        saved.set_title(f"{model.upper()}: auto against push/pull")
        for axes in row:
            axes.set_xticks([10, 30, 100, 300], ["10", "30", "100", "300"])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        low, high = sent.get_ylim()
        ticks = [t for t in (20, 50, 100, 200, 500, 1000, 2000, 5000) if low < t < high]
        sent.set_yticks(ticks, [f"{t:,}" for t in ticks])
        sent.legend(loc="upper left")
        saved.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _k(size: float) -> str:
    return f"{size / 1e3:,.1f}"


def _saved(ours: float, theirs: float) -> str:
    return f"{1 - ours / theirs:.1%}" if theirs else "-"


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
