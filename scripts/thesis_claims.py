#!/usr/bin/env python3
"""What a study says of the thesis' claims: thesis_claims.py RESULTS.csv

RESULTS.csv is that of `vitfreeze study configs/studies/cifar10.toml` (or shapes.toml). Prints markdown: points of top-1, mean over
the seeds with the 95 % interval by Student's t, as the study's own report; and differences of differences, which the report has not.
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


def told(differences):
    """Mean and interval, and whether the interval leaves zero out."""
    values = list(differences.values())
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) - 1 not in T:
        return f"{mean:+.1f} ({len(values)} seed)"
    half = T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    told = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
    return f"**{told}**" if abs(mean) > half > 0 else told


def seconds(runs, key):
    rows = runs.get(key, {}).values()
    return statistics.mean(float(row["seconds_measured"]) for row in rows) if rows else math.nan


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    runs = read(sys.argv[1])
    variants = sorted({variant for variant, _ in runs}, key=[variant for variant, _ in runs].index)
    full = lambda variant: (variant, "")

    print("Top-1 of the runs without freezing, mean (lowest to highest):\n")
    print("| run | seconds | " + " | ".join(EVALUATIONS) + " |\n|---|---:|" + "---:|" * len(EVALUATIONS))
    for variant in ["none", "none-short"]:
        cells = []
        for evaluation in EVALUATIONS:
            values = points(runs, full(variant), evaluation).values()
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-")
        print(f"| {variant} | {seconds(runs, full(variant)):.1f} | " + " | ".join(cells) + " |")

    print("\nVariant minus what it is compared with, points; bold where the interval leaves zero out:\n")
    print("| variant | beside | time | " + " | ".join(EVALUATIONS) + " |\n|---|---|---:|" + "---|" * len(EVALUATIONS))
    for variant in variants:
        against = "none-short" if variant.endswith("-short") else "none"
        others = [full(against), (variant, "train less"), (variant, "stop early")]
        for other in others:
            if variant == against or other not in runs:
                continue
            cells = [told(minus(points(runs, full(variant), e), points(runs, other, e))) for e in EVALUATIONS]
            time = 100 * (seconds(runs, full(variant)) / seconds(runs, other) - 1)
            print(f"| {variant} | {other[1] or against} | {time:+.1f} % | " + " | ".join(cells) + " |")

    print("\nCost of freezing in a long run minus its cost in a short one, points (above zero: long training helps):\n")
    print("| schedule | " + " | ".join(EVALUATIONS[:2]) + " |\n|---|---|---|")
    costs = {}
    for variant in variants:
        short = f"{variant}-short"
        if variant != "none" and full(short) in runs:
            cells = []
            for e in EVALUATIONS[:2]:
                long_cost = minus(points(runs, full(variant), e), points(runs, full("none"), e))
                short_cost = minus(points(runs, full(short), e), points(runs, full("none-short"), e))
                costs[variant, e, "long"], costs[variant, e, "short"] = long_cost, short_cost
                cells.append(told(minus(long_cost, short_cost)))
            print(f"| {variant} | " + " | ".join(cells) + " |")

    print("\nThe thesis' schedule minus the others, each beside no freezing, points:\n")
    print("| run | schedule | " + " | ".join(EVALUATIONS[:2]) + " |\n|---|---|---|---|")
    for length in ["long", "short"]:
        for other in ["cubic-scaled", "cubic-unscaled"]:
            cells = []
            for e in EVALUATIONS[:2]:
                pair = costs.get(("cubic-shared", e, length), {}), costs.get((other, e, length), {})
                cells.append(told(minus(*pair)))
            print(f"| {length} | cubic-shared beside {other} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
