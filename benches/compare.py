#!/usr/bin/env python3
"""Times requant against whichever peers are installed, on one slice, in one run.

    compare.py SLICE [--requant PATH] [--llama-cpp DIR] [--python PATH] [--work DIR] [--runs 3]

SLICE      a checkpoint directory, as make_slice.py makes it
--requant  the binary (default target/release/requant of this repository)
--llama-cpp  a llama.cpp tree with convert_hf_to_gguf.py and build/bin/llama-quantize
--python   an interpreter with torch, gguf and transformers (for the converter) and mlx_lm
--formats  which rows to run (default all)

For each row: wall seconds (median of the runs), of which seconds to sync the result to disk, CPU
seconds, peak resident memory of the largest process, bytes left on disk beside the result. requant
syncs before it ends; the peers do not, so their results are synced after them and counted, too:
everybody is done when the result is on the disk. Peers that are not there are left out; they run
once, for they take minutes. The source is read once before the first row, so everybody finds it in
the page cache as far as memory goes. Standard library only.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ROWS = {
    "q4_k_m": ("Q4_K_M", None),
    "q4_0": ("Q4_0", None),
    "q8_0": ("Q8_0", None),
    "mlx-4bit": (None, ["-q"]),
}


def measure(command, log, output):
    """Runs a command and syncs its output; (wall seconds, of which sync, CPU seconds, peak resident bytes)."""
    started = time.monotonic()
    with open(log, "ab") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        _, status, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    if status != 0:
        sys.exit(f"failed ({status}): {' '.join(map(str, command))}\nsee {log}")
    sync(output)
    wall, syncing = time.monotonic() - started, time.monotonic() - ended
    return wall, syncing, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def sync(path):
    for file in [path] if path.is_file() else path.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def size(path):
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def show(row, tool, wall, syncing, cpu, peak, extra):
    print(f"{row:10} {tool:44} {wall:8.2f} {syncing:8.2f} {cpu:8.2f} {peak / 1e9:8.2f} {extra / 1e9:8.2f}", flush=True)


def requant(arguments, row, log):
    output = arguments.work / f"requant-{row}"
    figures = []
    for _ in range(arguments.runs):
        remove(output)
        os.sync()
        command = [arguments.requant, "convert", arguments.slice, "--to", row, "-o", output, "--quiet"]
        figures.append(measure(command, log, output))
    remove(output)
    wall, syncing, cpu, peak = (statistics.median(column) for column in zip(*figures))
    show(row, f"requant (median of {arguments.runs})", wall, syncing, cpu, peak, 0)
    return wall


def llama_cpp(arguments, row, log, source):
    """The two steps of llama.cpp; the first is shared between rows."""
    quantize = arguments.llama_cpp / "build/bin/llama-quantize"
    output = arguments.work / "llama.gguf"
    remove(output)
    wall, syncing, cpu, peak = measure([quantize, source["path"], output, ROWS[row][0]], log, output)
    remove(output)
    show(row, "llama-quantize", wall, syncing, cpu, peak, 0)
    # Nobody needs the intermediate on the disk: its sync does not count.
    total = source["wall"] + wall
    show(row, "llama.cpp, both steps", total, syncing, source["cpu"] + cpu, max(source["peak"], peak), source["bytes"])
    return total


def convert_to_gguf(arguments, log):
    """convert_hf_to_gguf.py to BF16, the smaller of the intermediates in use."""
    path = arguments.work / "bf16.gguf"
    remove(path)
    script = REPOSITORY / "fixtures/reference_gguf.py"
    command = [arguments.python, script, arguments.llama_cpp, arguments.slice, "--outtype", "bf16", "--outfile", path]
    wall, syncing, cpu, peak = measure(command, log, path)
    wall -= syncing
    show("", "convert_hf_to_gguf.py --outtype bf16", wall, 0, cpu, peak, size(path))
    return {"path": path, "wall": wall, "cpu": cpu, "peak": peak, "bytes": size(path)}


def mlx(arguments, row, log):
    output = arguments.work / "mlx"
    remove(output)
    command = [arguments.python, "-m", "mlx_lm", "convert", "--hf-path", arguments.slice, "--mlx-path", output]
    wall, syncing, cpu, peak = measure([*command, *ROWS[row][1]], log, output)
    remove(output)
    show(row, "mlx_lm convert", wall, syncing, cpu, peak, 0)
    return wall


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slice", type=pathlib.Path)
    parser.add_argument("--requant", type=pathlib.Path, default=REPOSITORY / "target/release/requant")
    parser.add_argument("--llama-cpp", type=pathlib.Path)
    parser.add_argument("--python", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/requant-compare"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--formats", nargs="*", default=list(ROWS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "log"
    for file in sorted(arguments.slice.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass

    print(f"{'format':10} {'tool':44} {'wall s':>8} {'sync s':>8} {'cpu s':>8} {'RSS GB':>8} {'disk GB':>8}")
    ours = {row: requant(arguments, row, log) for row in arguments.formats}
    theirs = {}
    gguf_rows = [row for row in arguments.formats if ROWS[row][0]]
    if arguments.llama_cpp and arguments.python and gguf_rows:
        source = convert_to_gguf(arguments, log)
        theirs.update((row, llama_cpp(arguments, row, log, source)) for row in gguf_rows)
        remove(source["path"])
    if arguments.python:
        theirs.update((row, mlx(arguments, row, log)) for row in arguments.formats if ROWS[row][1])
    for row, wall in theirs.items():
        print(f"{row}: {wall / ours[row]:.1f} times as fast")


if __name__ == "__main__":
    main()
