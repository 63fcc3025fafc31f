#!/usr/bin/env python3
"""Mutated files against the program: no panic, no abort, no hang, no exit code but 0, 1 and 2.

    cargo build -p vitfreeze-cli
    python3 scripts/campaign.py target/debug/vitfreeze --seed 0 --files 2000

Takes small files of the repository's tests, damages each in a way that (seed, number) decides, and gives it to the
commands that read such files, under `ulimit -v` and a time limit. What fails is kept in --out, with the command. Needs
nothing but Python 3 and a Unix; exit code 1 if anything failed.
"""

import argparse
import collections
import concurrent.futures
import io
import json
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "vit/tests/fixtures/checkpoints"
SWINS = ROOT / "vit/tests/fixtures/swin"
IMAGES = ROOT / "datasets/tests/fixtures/formats"
SOURCES = ROOT / "datasets/tests/fixtures/sources"
FEW = "--batch-size 8 --accum 1 --samples 16 --epochs 2 --warmup-epochs 0 --max-steps 1 --threads 1".split()
TINY = ["--model", "vit-tiny", "--image-size", "16", "--patch-size", "4", *FEW]
INTEGERS = [0, 1, -1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1]
WORDS = [
    b"0", b"-1", b"1e400", b"1e-400", b"nan", b"NaN", b"inf", b"true", b"null", b'""', b"[]", b"{}", b"[[[[[[[[", b"1" * 400,
    b"18446744073709551616", b"9223372036854775807", b'"\\u001b[31m"', b"'x'", b"0.5", b"1000000", b"\xff\xfe", b"\x1b]0;x\x07",
]


def damage(data, rng, textual):
    """One to three changes."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not data:
            return bytes(data)
        # Most of what a reader trusts stands at the beginning or at the end.
        at = rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 512)), -1 - rng.randrange(min(len(data), 512))])
        at %= len(data)
        kind = rng.randrange(9 if textual else 7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            width = rng.choice([2, 4, 8])
            number = rng.choice(INTEGERS) % (1 << (8 * width))
            data[at : at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + rng.choice([1, 4, 64, 1000])]
        elif kind == 5:
            chunk = data[at : at + rng.choice([1, 8, 300])]
            data[at:at] = chunk * rng.choice([1, 1, 5])
        elif kind == 6:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 3, 20])))
        else:
            # A word of a text (JSON, TOML) becomes another one.
            words = list(re.finditer(rb'"[^"\n]{0,80}"|[A-Za-z0-9_.+-]+', bytes(data[:20000])))
            if words:
                word = rng.choice(words)
                new = rng.choice(WORDS + [rng.choice(words).group()])
                data[word.start() : word.end()] = new
    return bytes(data)


def damage_inside(data, rng, textual):
    """The same behind the checksums: a member of a zip archive (.pth), the chunks of a PNG."""
    if data[:4] == b"PK\x03\x04":
        source = zipfile.ZipFile(io.BytesIO(data))
        names = source.namelist()
        # The pickle says what all the others are.
        chosen = rng.choice([n for n in names if n.endswith("data.pkl")] + [rng.choice(names)])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as target:
            for name in names:
                member = source.read(name)
                target.writestr(name, damage(member, rng, False) if name == chosen else member)
        return out.getvalue()
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        data, at = bytearray(data[:8] + damage(data[8:], rng, False)), 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            if end + 4 > len(data):
                break
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
            at = end + 4
        return bytes(data)
    return damage(data, rng, textual)


class Case:
    """A file to damage, where it lies among others, and what reads it."""

    def __init__(self, kind, name, data, place, commands, textual=False):
        self.kind, self.name, self.data, self.textual = kind, name, data, textual
        # Makes what lies around it in a folder, and returns the file's path there.
        self.place, self.commands = place, commands


def beside(name, *others):
    """The file under `name`, with copies of other files and folders."""

    def place(folder):
        for other in others:
            if other.is_dir():
                shutil.copytree(other, folder / other.name, dirs_exist_ok=True)
            else:
                shutil.copy(other, folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    return place


def make_tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, path in enumerate(sorted(IMAGES.iterdir())):
            for name, data in [(f"{i:03}{path.suffix}", path.read_bytes()), (f"{i:03}.cls", str(i % 3).encode())]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def cases(program, work):
    image = next(p for p in sorted(IMAGES.iterdir()) if p.suffix == ".png")
    folder = work / "images"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(20):
            shutil.copy(image, folder / name / f"{i}.png")
    read = [
        ["inspect", "{file}", "--heads", "2"],
        ["inspect", "{file}"],
        ["convert", "{file}", "{out}", "--to", "timm", "--heads", "2"],
        ["convert", "{file}", "{out}", "--to", "hf", "--drop-head"],
        ["classify", "--checkpoint", "{file}", str(image)],
        ["embed", "--checkpoint", "{file}", "--heads", "2", "--data", str(folder), "--out", "{out}", "--threads", "1"],
    ]
    every = []
    for path in sorted([*CHECKPOINTS.iterdir(), *SWINS.iterdir()]):
        if path.suffix == ".pth":
            every.append(Case("pth", path.name, path.read_bytes(), beside(path.name), read))
        elif path.is_dir():
            here = [[("{dir}" if word == "{file}" else word) for word in line] for line in read]
            for file in sorted(path.iterdir()):
                others = [p for p in path.iterdir() if p != file]
                kind = "config" if file.suffix == ".json" else "safetensors"
                textual = file.suffix == ".json" or file.suffix == ".safetensors"
                every.append(Case(kind, f"{path.name}/{file.name}", file.read_bytes(), beside(file.name, *others), here, textual))
    look = ["data", "inspect", "{dir}", "--check", "--threads", "1"]
    train = ["pretrain", *TINY, "--out", "{out}", "--data"]
    for path in sorted(IMAGES.iterdir()):
        kind = path.suffix.strip(".")
        place = beside(f"a/{path.name}", folder / "a", folder / "b")
        model = str(CHECKPOINTS / "timm_distilled")
        every.append(Case(kind, path.name, path.read_bytes(), place, [look, train + ["{dir}"], ["classify", "--checkpoint", model, "{file}"]]))
    for name, data in [("shard.tar", make_tar())] + [(p.name, p.read_bytes()) for p in sorted(SOURCES.glob("*.parquet"))]:
        kind = name.rsplit(".", 1)[-1]
        every.append(Case(kind, name, data, beside(name), [["data", "inspect", "{file}", "--check", "--threads", "1"], train + ["{file}"]]))
    for path in sorted((ROOT / "configs").glob("*.toml")):
        flags = ["--data", "shapes", *TINY, "--out", "{out}", "--decoder-dim", "16", "--decoder-heads", "2"]
        every.append(Case("toml", path.name, path.read_bytes(), beside(path.name), [["pretrain", "--config", "{file}", *flags], ["schedule", "--config", "{file}"]], True))
    run = lambda *words: subprocess.run([program, *words], check=True, capture_output=True)
    run("pretrain", *TINY, "--data", "shapes", "--out", str(work / "pretrain"))
    run("finetune", *TINY, "--data", "shapes", "--ema", "0.9", "--out", str(work / "finetune"))
    run("linprobe", *FEW, "--data", "shapes", "--checkpoint", str(work / "pretrain"), "--out", str(work / "linprobe"))
    for command in ["pretrain", "finetune", "linprobe"]:
        path = work / command
        for name in ["checkpoint.safetensors", "config.toml", "metrics.jsonl", "result.json"]:
            others = [p for p in path.iterdir() if p.name != name]
            go_on = [[command, "--resume", "{dir}", "--max-steps", "2"], ["compare", "{dir}", "--out", "{out}.png"]]
            every.append(Case("run", f"{command}/{name}", (path / name).read_bytes(), beside(name, *others), go_on, True))
    return every


def attempt(program, case, rng, limits):
    """Runs one command on one damaged file; `None`, or what is wrong with what it did, and its exit code."""
    memory, seconds = limits
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        inside, out = folder / "in", folder / "out"
        inside.mkdir()
        path = case.place(inside)
        data = rng.choice([damage, damage_inside])(case.data, rng, case.textual)
        path.write_bytes(data)
        words = {"file": str(path), "dir": str(inside), "out": str(out)}
        command = [word.format(**words) for word in rng.choice(case.commands)]
        bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        try:
            done = subprocess.run([program, *command], capture_output=True, timeout=seconds, preexec_fn=bound, cwd=folder)
            code, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            return "hangs", None, command, data
        problem = None
        if code not in (0, 1, 2):
            problem = f"exit code {code}"
        elif b"panicked" in said or b"RUST_BACKTRACE" in said:
            problem = "prints a panic"
        elif b"\x1b" in said or b"\x07" in said:
            problem = "prints an escape code"
        elif code != 0 and said.count(b"error: ") == 0 and b"bad" not in said:
            problem = "fails without an error line"
        return problem, code, command, data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--memory", type=int, default=4_000_000, help="KiB, as ulimit -v")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--kind", help="only files of this kind (pth, safetensors, png, tar, ...)")
    parser.add_argument("--out", default="campaign", help="folder for what failed")
    args = parser.parse_args()
    program = str(pathlib.Path(args.program).resolve())
    limits = (args.memory * 1024, args.seconds)
    codes, failed = collections.defaultdict(collections.Counter), 0
    with tempfile.TemporaryDirectory() as work:
        every = cases(program, pathlib.Path(work))
        by_kind = collections.defaultdict(list)
        for case in every:
            by_kind[case.kind].append(case)
        kinds = [args.kind] if args.kind else sorted(by_kind)

        def one(number):
            rng = random.Random(f"{args.seed}/{number}")
            case = rng.choice(by_kind[kinds[number % len(kinds)]])
            return number, case, attempt(program, case, rng, limits)

        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for number, case, (problem, code, command, data) in pool.map(one, range(args.files)):
                codes[case.kind]["hang" if code is None else code] += 1
                if problem:
                    failed += 1
                    out = pathlib.Path(args.out) / f"{args.seed}-{number}"
                    out.mkdir(parents=True, exist_ok=True)
                    (out / case.name.replace("/", "_")).write_bytes(data)
                    (out / "command.json").write_text(json.dumps({"problem": problem, "file": case.name, "command": command}, indent=1))
                    print(f"{out}: {problem}: {case.name}: {' '.join(command)}", flush=True)
    for kind in sorted(codes):
        print(f"{kind:12} {sum(codes[kind].values()):5} files, by exit code: {dict(sorted(codes[kind].items(), key=str))}")
    print(f"seed {args.seed}: {args.files} files, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
