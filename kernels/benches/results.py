"""RESULTS.md from what gpu.sh gathered: python results.py FOLDER > RESULTS.md"""

import collections
import datetime
import json
import pathlib
import re
import sys


def text(name):
    return (folder / name).read_text() if (folder / name).exists() else ""


folder = pathlib.Path(sys.argv[1])
today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
print("# Figures of one machine\n")
print(f"Written by `kernels/benches/gpu.sh` on {today}: {text('card').strip()}.\n")
print("Random weights, f32 unless said; the best of all turns, ours and PyTorch's in turn on the same device, after a turn")
print("that is not counted. A ratio is our time over PyTorch's: below 1, ours is faster.\n")
for line in text("skipped").splitlines():
    print(f"* skipped: {line}")

best = collections.defaultdict(lambda: collections.defaultdict(lambda: float("inf")))
for line in filter(lambda line: line.startswith("{"), text("runs").splitlines()):
    run = json.loads(line)
    # Only ours tells of the host's memory.
    side = ("ours" if "host_peak_mib" in run else "PyTorch", run["dtype"])
    key = (run["run"], run["shape"] + (", small" if run["small"] else ""))
    best[key][side] = min(best[key][side], *run["seconds"])
if best:
    types = [dtype for dtype in ("f32", "bf16") if any(side[1] == dtype for times in best.values() for side in times)]
    print("\n## Models\n")
    print("| run | shape |" + "".join(f" ours {dtype}, s | PyTorch {dtype}, s | ratio |" for dtype in types))
    print("| --- | --- |" + " ---: | ---: | ---: |" * len(types))
    for (run, shape), times in best.items():
        cells = []
        for dtype in types:
            ours, theirs = (times.get((who, dtype)) for who in ("ours", "PyTorch"))
            cells += [f"{seconds:.4f}" if seconds else "-" for seconds in (ours, theirs)]
            cells.append(f"{ours / theirs:.2f}" if ours and theirs else "-")
        print(f"| {run} | {shape} | " + " | ".join(cells) + " |")

turns = re.findall(r"^(\S+): least ([\d.]+), middle ([\d.]+)$", text("turns"), re.MULTILINE)
if turns:
    print("\n## In turns with PyTorch, f32\n")
    print("Our time over PyTorch's: of the least times, and of the middle ones. `compare.py` says the shapes.\n")
    print("| work | least | middle |\n| --- | ---: | ---: |")
    for row in turns:
        print("| " + " | ".join(row) + " |")

rows, name = [], None
for line in text("benches").splitlines():
    if found := re.match(r"(\S+ on \S+)/(\[.*?\])", line):
        name = found.groups()
    elif (found := re.match(r"\s+([\d.]+) ms, (.+)", line)) and name:
        rows.append((*name, found[1], found[2]))
        name = None
if rows:
    print("\n## Kernels\n")
    print("Parts are of the device's own best rates, measured in the same run.\n")
    print("| kernel | case | ms | rates |\n| --- | --- | ---: | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")

models = [line for line in text("models").splitlines() if " from the CPU's" in line]
if models:
    print("\n## Tiny models beside the CPU\n\n" + "\n".join(f"* {line}" for line in models))

results = [line for line in text("agreement").splitlines() if line.startswith("test result")]
if results:
    print(f"\n## Agreement\n\n`cargo test -p vw2-kernels --lib check::`: {results[-1].removeprefix('test result: ')}")
