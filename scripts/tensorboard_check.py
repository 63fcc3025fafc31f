"""Reads the TensorBoard event files of a run with the real package and compares them with its metrics.jsonl.

python3 scripts/tensorboard_check.py RUN                   (needs: pip install tensorboard)
python3 scripts/tensorboard_check.py --write-fixture FILE  the file that vitfreeze-cli/src/run/event_file.rs is tested against
"""
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, histogram_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def write_fixture(path):
    scalar = lambda tag, x: summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=x)])
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big")
    image = summary_pb2.Summary.Image(height=480, width=640, colorspace=4, encoded_image_string=png)
    counts = [0.0] * 40
    counts[0], counts[15], counts[39] = 1.0, 2.0, 1.0  # -1; 0.5 and 0.5; 3
    histogram = histogram_pb2.HistogramProto(min=-1.0, max=3.0, num=4.0, sum=3.0, sum_squares=10.5, bucket=counts,
                                             bucket_limit=[-1 + 4 / 40 * i for i in range(1, 41)])
    text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"    a = 1"],
                                  tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[{"size": 1}]))
    plugin = summary_pb2.SummaryMetadata(plugin_data={"plugin_name": "text"})
    value = lambda tag, **what: summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, **what)])
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in (
            event_pb2.Event(wall_time=1.5, file_version="brain.Event:2"),
            event_pb2.Event(wall_time=2.5, step=300, session_log=start),
            event_pb2.Event(wall_time=3.25, step=300, summary=scalar("lr/layer_00", 1e-3)),
            event_pb2.Event(wall_time=4.0, step=70_000, summary=scalar("loss", -2.5)),
            event_pb2.Event(wall_time=5.0, step=300, summary=value("seen", image=image)),
            event_pb2.Event(wall_time=6.0, step=300, summary=value("weights", histo=histogram)),
            event_pb2.Event(wall_time=7.0, step=300, summary=value("config", tensor=text, metadata=plugin)),
        ):
            writer.write(event.SerializeToString())
        writer.flush()


def check(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if "lr" in row]
    everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    events = EventAccumulator(str(run), size_guidance=everything).Reload()
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
    pictures = sorted((run / "seen").glob("epoch-*.png"))
    if pictures:
        got = [e.encoded_image_string for e in events.Images("seen/predictions")]
        assert got == [p.read_bytes() for p in pictures], "seen/predictions: other pictures than in seen"
        last = events.Images("seen/targets")[-1]
        assert last.encoded_image_string == (run / "seen/targets.png").read_bytes(), "seen/targets: another picture"
        assert (last.width, last.height) == struct.unpack(">II", last.encoded_image_string[16:24])
    config = events.Tensors("config")[0].tensor_proto.string_val[0].decode()
    written = "".join(line[4:] + "\n" for line in config.splitlines())
    assert written == (run / "config.toml").read_text(), "config: not that of config.toml"
    histograms = events.Tags()["histograms"]
    for tag in histograms:
        for event in events.Histograms(tag):
            h = event.histogram_value
            assert sum(h.bucket) == h.num > 0 and h.min <= h.max <= h.bucket_limit[-1] + 1e-9, tag
    print(f"{len(pictures)} pictures, {len(histograms)} histograms, the configuration as text")
    print(f"{len(tags)} tags; {compared} numbers of {len(rows)} steps are those of metrics.jsonl")


if sys.argv[1] == "--write-fixture":
    write_fixture(sys.argv[2])
else:
    check(pathlib.Path(sys.argv[1]))
