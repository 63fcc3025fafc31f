#!/usr/bin/env python3
"""Draws seconds per step and stage losses of a run.

    python3 scripts/plot_metrics.py runs/pretrain-1/metrics.jsonl out.png     (needs matplotlib)
"""
import json
import sys
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

rows = [json.loads(line) for line in open(sys.argv[1])]
steps = [r["step"] for r in rows]
fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")

# Running medians: single steps of a shared machine are noisy.
smooth = lambda values: [median(values[max(0, i - 4) : i + 5]) for i in range(len(values))]
total = smooth([r["seconds"]["total"] for r in rows])
forward = smooth([r["seconds"]["forward"] for r in rows])
top.fill_between(steps, forward, color="#9ecae1", label="forward")
top.fill_between(steps, forward, total, color="#3182bd", label="backward, optimiser")
frozen = top.twinx()
frozen.step(steps, [r["frozen"] for r in rows], color="#e6550d", where="post")
frozen.set_ylabel("frozen layers", color="#e6550d")
top.set_ylabel("seconds per step")
top.set_ylim(0)
top.legend(loc="lower left")

for k in range(len(rows[0]["stage_losses"])):
    part = [(r["step"], r["stage_losses"][k]) for r in rows if r["stage_losses"][k] is not None]
    bottom.plot(*zip(*part), label=f"stage {k}")
bottom.set_ylabel("loss by stage")
bottom.set_xlabel("step")
bottom.set_yscale("log")
bottom.legend(loc="upper right", ncols=4)
fig.savefig(sys.argv[2], dpi=110)
