#!/usr/bin/env python3
"""Writes vitfreeze-cli/tests/fixtures/study_statistics.json: Student t intervals by scipy.

    pip install scipy && python3 scripts/study_fixture.py
"""
import json
import pathlib
import random

from scipy import stats

random.seed(18)
cases = []
for count in [2, 2, 3, 3, 3, 4, 5, 5, 7, 10, 20, 50]:
    values = [round(random.gauss(random.choice([-0.6, 0.0, 0.6]), 0.5), 4) for _ in range(count)]
    mean, error = stats.tmean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, count - 1, loc=mean, scale=error)
    case = {"values": values, "mean": mean, "deviation": stats.tstd(values), "low": low, "high": high}
    cases.append({key: value if key == "values" else float(value) for key, value in case.items()})
path = pathlib.Path(__file__).parent.parent / "vitfreeze-cli/tests/fixtures/study_statistics.json"
path.write_text(json.dumps(cases, indent=1) + "\n")
