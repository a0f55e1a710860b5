"""OpenMetrics: the text, the example that serves it, and the dashboard that reads it."""

import json
import re
import signal
import socket
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from conftest import OUT, ROOT, must


def parse(text):
    """{(name, labels but those that all have): value}"""
    assert text.endswith("# EOF\n")
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("interface", "queue", "device")}
            assert set(sample.labels) - set(labels) == {"interface", "queue", "device"}
            found[(sample.name, *labels.values())] = (sample.value, sample.labels)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        return answer.read().decode()


def test_the_example_serves_what_was_counted(network, device, start):
    port = free_port()
    running = start(OUT / "bin/metrics", network.near, device, port)
    running.until("^Recording")
    with socket.create_connection(("127.0.0.1", port)):
        # One that says nothing holds nobody up for long.
        before = parse(get(port))
    assert before["unified_received_total",][0] == 0
    network.send(300)
    after = {}
    for _ in range(50):
        after = parse(get(port))
        if after["unified_stored_total",][0] == 300:
            break
    assert after["unified_stored_total",] == (300, {"interface": network.near, "queue": "0", "device": str(device)})
    assert after["unified_xdp_redirected_total",][0] == after["unified_received_total",][0] == 300
    assert after["unified_link_up",][0] == after["unified_xdp_attached",][0] == 1
    frames = [after["unified_frames", state][0] for state in ("free", "filled", "held", "in_flight")]
    assert sum(frames) == 4096
    assert sum(after["unified_dropped_total", cause][0] for cause in ("no_frame", "rx_ring_full", "redirect_errors")) == 0
    for what, count in (("packet", 300), ("command", after["unified_completed_total",][0])):
        name = f"unified_{what}_latency_seconds"
        buckets = [(float(key[1]), value) for key, (value, _) in after.items() if key[0] == f"{name}_bucket"]
        assert len(buckets) == 101 and buckets == sorted(buckets) and buckets[-1] == (float("inf"), count)
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert after[f"{name}_count",][0] == count
        # The longest is in the first bucket that has them all.
        longest = after[f"unified_{what}_latency_max_seconds",][0]
        assert 0 < longest <= next(bound for bound, value in buckets if value == count)
        assert longest <= after[f"{name}_sum",][0] < count * longest
    running.process.send_signal(signal.SIGINT)
    assert running.end(10) == 0 and "Stored 300 of 300" in running.text()


def test_dashboard_and_document_name_what_there_is(network, device, start):
    port = free_port()
    start(OUT / "bin/metrics", network.near, device, port).until("^Recording")
    names = {name for name, *_ in parse(get(port))}
    dashboard = json.loads((ROOT / "docs/grafana/dashboard.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    document = (ROOT / "docs/monitoring.md").read_text()
    shown, told = (set(re.findall(r"\bunified_[a-z_]+", text)) for text in (expressions, document))
    assert len(shown) > 10 and shown <= names, shown - names
    functions = {"unified_stats", "unified_ctx_stats", "unified_stats_render", "unified_ctx_latency", "unified_latency_quantile",
                 "unified_frames_release"}
    plain = {re.sub("_seconds_(bucket|count|sum)$", "_seconds", name) for name in names}
    assert told - functions == plain | {"unified_packet_latency_seconds_bucket"}, told ^ plain


def test_no_name_forges_a_sample(network, device, start):
    port = free_port()
    path = device.with_name(device.name + '"} 1\nunified_forged{x="b\\')
    try:
        start(OUT / "bin/metrics", network.near, path, port).until("^Recording")
        found = parse(get(port))
    finally:
        path.unlink(missing_ok=True)
    assert found["unified_received_total",][1]["device"] == str(path)
    assert not any(name == "unified_forged" for name, *_ in found)


def test_lanes_and_devices_have_samples_of_their_own(many_queues, device, start):
    """Every device and lane is counted by itself, and the sums are those of what was sent."""
    network, count, port = many_queues, 6000, free_port()
    devices = [device.with_name(f"{device.name}-{i}") for i in range(3)]
    try:
        running = start(OUT / "bin/metrics", "-q", "all", network.near, ",".join(map(str, devices)), port)
        running.until("^Recording")
        network.send(count, 1472, rate=3000, flows=64)
        for _ in range(50):
            samples = [sample for family in text_string_to_metric_families(get(port)) for sample in family.samples]
            of = lambda name: [s for s in samples if s.name == name]
            if sum(s.value for s in of("unified_stored_total")) == count:
                break
        lanes = {(s.labels["lane"], s.labels["queue"]): s.value for s in of("unified_stored_total")}
        assert sorted(lanes) == [("0", "0"), ("1", "1"), ("2", "2"), ("3", "3"), ("none", "")]
        assert sum(lanes.values()) == count and lanes["none", ""] == 0
        written = {}
        for sample in of("unified_bytes_written_total"):
            written[sample.labels["device"]] = written.get(sample.labels["device"], 0) + sample.value
        # Each payload has three blocks. Each lane has its own part of the space, and fills more than a chunk of it.
        assert set(written) == {str(one) for one in devices} and sum(written.values()) == count * 1536
        assert all(written.values()), written
        for name in ("unified_device_out", "unified_device_in_flight", "unified_errors_total"):
            assert len(of(name)) == 5 * 3 and not any(s.value for s in of(name)), name
        dashboard = json.loads((ROOT / "docs/grafana/dashboard.json").read_text())
        check_panels(dashboard, samples)
        running.process.send_signal(signal.SIGINT)
        assert running.end(10) == 0 and f"Stored {count} of {count}" in running.text()
    finally:
        for one in devices:
            one.unlink(missing_ok=True)


def check_panels(dashboard, samples):
    """Each label that a panel asks for is on the samples that it asks."""
    labels = {}
    for sample in samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert {"interface", "lane", "device"} <= variables
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(ids)
    by_device, by_lane = [], []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"\bunified_[a-z_]+", target["expr"])
            asked = set(re.findall(r'(\w+)=~"\$(?:\w+)"', target["expr"]))
            assert set(re.findall(r'=~"\$(\w+)"', target["expr"])) <= variables
            for group in re.findall(r"\bby \(([^)]*)\)", target["expr"]):
                asked |= set(re.split(r",\s*", group))
            assert asked <= labels[name], (panel["title"], name, asked - labels[name])
            by_device += [name] * ("device" in asked)
            by_lane += [name] * ("lane" in asked)
    assert {"unified_bytes_written_total", "unified_bytes_read_total", "unified_errors_total", "unified_device_in_flight",
            "unified_device_out"} <= set(by_device)
    assert {"unified_received_total", "unified_stored_total", "unified_dropped_total", "unified_commands_in_flight"} <= set(by_lane)
    (state,) = [p for p in dashboard["panels"] if "unified_device_out" in p["targets"][0]["expr"]]
    assert state["type"] == "state-timeline"
    assert {kind: of["text"] for kind, of in state["fieldConfig"]["defaults"]["mappings"][0]["options"].items()} == \
        {"0": "in use", "1": "out"}
