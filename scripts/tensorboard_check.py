"""Reads the TensorBoard event files of a run with the real package and compares them with its metrics.jsonl.

python3 scripts/tensorboard_check.py RUN                   (needs: pip install tensorboard)
python3 scripts/tensorboard_check.py --write-fixture FILE  the file that vitfreeze-cli/src/tensorboard.rs is tested against
"""
import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def write_fixture(path):
    scalar = lambda tag, x: summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=x)])
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in (
            event_pb2.Event(wall_time=1.5, file_version="brain.Event:2"),
            event_pb2.Event(wall_time=2.5, step=300, session_log=start),
            event_pb2.Event(wall_time=3.25, step=300, summary=scalar("lr/layer_00", 1e-3)),
            event_pb2.Event(wall_time=4.0, step=70_000, summary=scalar("loss", -2.5)),
        ):
            writer.write(event.SerializeToString())
        writer.flush()


def check(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if "lr" in row]
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    wanted = {"frozen": lambda r: r["frozen"], "images_per_second": lambda r: r["images_per_second"]}
    wanted["train/loss"] = lambda r: r["loss"]
    for layer in range(len(rows[0]["lr"])):
        wanted[f"lr/layer_{layer:02}"] = lambda r, layer=layer: r["lr"][layer]
    for stage in range(len(rows[0].get("stage_losses", []))):
        wanted[f"train/loss_stage_{stage}"] = lambda r, stage=stage: r["stage_losses"][stage]
    compared = 0
    for tag, value in wanted.items():
        expected = [(r["step"], value(r)) for r in rows if value(r) is not None]
        got = [(e.step, e.value) for e in events.Scalars(tag)]
        assert [s for s, _ in got] == [s for s, _ in expected], f"{tag}: steps differ"
        for (step, a), (_, b) in zip(got, expected):
            assert math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30), f"{tag}, step {step}: {a} and {b}"
            compared += 1
    print(f"{len(tags)} tags; {compared} numbers of {len(rows)} steps are those of metrics.jsonl")


if sys.argv[1] == "--write-fixture":
    write_fixture(sys.argv[2])
else:
    check(pathlib.Path(sys.argv[1]))
