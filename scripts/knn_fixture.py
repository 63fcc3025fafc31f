"""Writes vitfreeze-cli/tests/fixtures/knn.json: k-NN as DINO's protocol has it, by brute force in numpy.

python3 scripts/knn_fixture.py
"""
import json
import pathlib

import numpy as np

WIDTH, CLASSES, BANK, QUERIES = 8, 7, 230, 61
rng = np.random.default_rng(0)
centres = rng.normal(size=(CLASSES, WIDTH))


def draw(count):
    labels = rng.integers(CLASSES, size=count)
    # Rounded, so that the file holds exactly what is computed with; norms differ.
    features = (centres[labels] + 1.6 * rng.normal(size=(count, WIDTH))) * rng.uniform(0.2, 5, (count, 1))
    return np.round(features, 3).astype(np.float32), labels


bank, bank_labels = draw(BANK)
queries, query_labels = draw(QUERIES)
unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
similar = unit(queries) @ unit(bank).T
right = []
for k in (10, 20, 100, 200):
    top1 = top5 = 0
    for row, label in zip(similar, query_labels):
        votes = np.zeros(CLASSES)
        for i in np.argsort(-row, kind="stable")[:k]:
            votes[bank_labels[i]] += np.exp(row[i] / 0.07)
        ranked = [c for c in np.argsort(-votes, kind="stable") if votes[c] > 0]
        top1 += int(ranked[0] == label)
        top5 += int(label in ranked[:5])
    right.append([k, top1, top5])
print(right)
out = dict(
    width=WIDTH,
    classes=CLASSES,
    bank=[round(float(x), 3) for x in bank.ravel()],
    bank_labels=bank_labels.tolist(),
    queries=[round(float(x), 3) for x in queries.ravel()],
    query_labels=query_labels.tolist(),
    right=right,
)
path = pathlib.Path(__file__).parent.parent / "vitfreeze-cli/tests/fixtures/knn.json"
path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
