#!/usr/bin/env python3
"""What a study says of the thesis' claims: thesis_claims.py RESULTS.csv [OTHER.csv]

RESULTS.csv is that of `vitfreeze study configs/studies/cifar10.toml` (or shapes.toml). Prints markdown: points of top-1, mean over
the seeds with the 95 % interval by Student's t, as the study's own report; and differences of differences, which the report has not.
With OTHER.csv also what freezing changes there minus what it changes in RESULTS.csv (Welch, degrees of freedom rounded down).
"""
import csv
import math
import statistics
import sys

# Student's t, 97.5 %, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
EVALUATIONS = ["knn", "linprobe", "finetune"]


def read(path):
    """(variant, baseline) -> seed -> row, of the runs that are done."""
    runs = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "done":
                runs.setdefault((row["variant"], row["baseline"]), {})[row["seed"]] = row
    return runs


def points(runs, key, evaluation):
    """seed -> top-1."""
    column = f"{evaluation}_top1"
    return {seed: float(row[column]) for seed, row in runs.get(key, {}).items() if row.get(column)}


def minus(a, b):
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def signed(x):
    """One place; no minus before a zero."""
    return f"{round(x, 1) + 0.0:+.1f}"


def interval(mean, half):
    told = f"{signed(mean)} ({signed(mean - half)} to {signed(mean + half)})"
    return f"**{told}**" if abs(mean) > half > 0 else told


def half_width(values):
    return T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def told(differences):
    """Mean and interval, and whether the interval leaves zero out."""
    values = list(differences.values())
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) - 1 not in T:
        return f"{signed(mean)} ({len(values)} seed)"
    return interval(mean, half_width(values))


def told_unpaired(a, b):
    """The same of mean a minus mean b, whose seeds have nothing in common."""
    a, b = list(a.values()), list(b.values())
    if min(len(a), len(b)) < 2:
        return "-"
    parts = [statistics.variance(x) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b)))
    return interval(statistics.mean(a) - statistics.mean(b), T[int(freedom)] * math.sqrt(sum(parts)))


def counts(differences):
    """1: all of the interval is above zero, -1: below, 0: neither; None without seeds enough."""
    values = list(differences.values())
    if len(values) - 1 not in T:
        return None
    mean, half = statistics.mean(values), half_width(values)
    return (mean > 0) - (mean < 0) if abs(mean) > half > 0 else 0


def seconds(runs, key):
    rows = runs.get(key, {}).values()
    return statistics.mean(float(row["seconds_measured"]) for row in rows) if rows else math.nan


def unfrozen(variant):
    """The run without freezing of the same length."""
    return "none-short" if variant.endswith("-short") else "none"


def freezing(runs, variant, evaluation):
    """What freezing changes, by seed."""
    return minus(points(runs, (variant, ""), evaluation), points(runs, (unfrozen(variant), ""), evaluation))


def heading(told, *columns):
    print(f"\n{told}:\n")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    runs, *other = [read(path) for path in sys.argv[1:]]
    variants = sorted({variant for variant, _ in runs}, key=[variant for variant, _ in runs].index)
    full = lambda variant: (variant, "")

    heading("Top-1 of the runs without freezing, mean (lowest to highest)", "run", "seconds", *EVALUATIONS)
    for variant in ["none", "none-short"]:
        cells = []
        for evaluation in EVALUATIONS:
            values = points(runs, full(variant), evaluation).values()
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-")
        print(f"| {variant} | {seconds(runs, full(variant)):.1f} | " + " | ".join(cells) + " |")

    heading(
        "Variant minus what it is compared with, points; bold where the interval leaves zero out",
        "variant", "beside", "time", *EVALUATIONS,
    )
    tally = {}
    for variant in variants:
        against = unfrozen(variant)
        for key in [full(against), (variant, "train less"), (variant, "stop early")]:
            if variant == against or key not in runs:
                continue
            differences = [minus(points(runs, full(variant), e), points(runs, key, e)) for e in EVALUATIONS]
            time = 100 * (seconds(runs, full(variant)) / seconds(runs, key) - 1)
            cells = " | ".join(map(told, differences))
            print(f"| {variant} | {key[1] or against} | {time:+.1f} % | {cells} |")
            if key[1] and variant != "growing":
                found = [x for x in map(counts, differences) if x is not None]
                tally.setdefault(key[1], []).extend(found)
    for baseline, found in tally.items():
        print(f"\nFreezing beside {baseline}: {len(found)} comparisons, {found.count(-1)} against it, {found.count(1)} for it.")

    heading(
        "Runs without freezing that take less time, minus `none`, points", "run", "epochs", "steps", "time", *EVALUATIONS
    )
    shown = set()
    for key in [full("none-short")] + [(v, b) for b in ["train less", "stop early"] for v in variants if not v.endswith("-short")]:
        folders = tuple(sorted(row["folder"] for row in runs.get(key, {}).values()))
        if not folders or folders in shown:
            continue
        shown.add(folders)
        rows = runs[key].values()
        length = [", ".join(sorted({row[c] for row in rows}, key=int)) for c in ("epochs", "steps")]
        time = 100 * (seconds(runs, key) / seconds(runs, full("none")) - 1)
        cells = [told(minus(points(runs, key, e), points(runs, full("none"), e))) for e in EVALUATIONS]
        print(f"| {key[1] or key[0]} | {length[0]} | {length[1]} | {time:+.1f} % | " + " | ".join(cells) + " |")

    schedules = [v for v in variants if v != "none" and full(f"{v}-short") in runs]
    heading(
        "What freezing changes in a long run minus what it changes in a short one, points (above zero: long training helps)",
        "schedule", *EVALUATIONS[:2],
    )
    for variant in schedules:
        pairs = [(freezing(runs, variant, e), freezing(runs, f"{variant}-short", e)) for e in EVALUATIONS[:2]]
        print(f"| {variant} | " + " | ".join(told(minus(*pair)) for pair in pairs) + " |")

    heading("The thesis' schedule minus the others, each beside no freezing, points", "run", "schedule", *EVALUATIONS)
    for length, tail in [("long", ""), ("short", "-short")]:
        for beside in ["cubic-scaled", "cubic-unscaled"]:
            pairs = [(freezing(runs, f"cubic-shared{tail}", e), freezing(runs, beside + tail, e)) for e in EVALUATIONS]
            print(f"| {length} | cubic-shared beside {beside} | " + " | ".join(told(minus(*pair)) for pair in pairs) + " |")

    if other:
        heading(f"What freezing changes in {sys.argv[2]} minus what it changes in {sys.argv[1]}, points", "run", *EVALUATIONS[:2])
        for variant in [v + tail for tail in ("", "-short") for v in schedules]:
            pairs = [(freezing(other[0], variant, e), freezing(runs, variant, e)) for e in EVALUATIONS[:2]]
            print(f"| {variant} | " + " | ".join(told_unpaired(*pair) for pair in pairs) + " |")


if __name__ == "__main__":
    main()
