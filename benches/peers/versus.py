# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts "rival" and "rates": this library against the copying recorder, pair by pair, round by round."""

import statistics
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import report
from lab import PORT, Lab
from recorders import FRAME_HEADERS, Drop, Ours, OursNull, OursReceive, Recorder, Rival

# Layout, drive and more arguments of ours, and what the rival stores beside it. A new layout of the pipeline needs one line
# here. The rival computes no checksum, as ours does not if it is unchecked.
LOG, UNCHECKED = ("log", "inline", "frame"), ("log", "inline", "frame", "--unchecked")
STORING = [LOG, UNCHECKED, ("log", "thread", "frame"), ("slot", "inline", "frame"), ("payload", "inline", "payload")]
NULL_LAYOUTS = [LOG, UNCHECKED, ("slot", "inline", "frame"), ("payload", "inline", "payload")]
# For the short form.
STORING_SHORT = NULL_SHORT = [LOG, UNCHECKED]
# As much memory as the rival has: 64 MiB of frames, all of which may wait in its rings, and 16 MiB of buffers.
MEMORY = ("--rings", "32768", "--frames", "40960")
# Offered in the part "rates", packets a second; 0: as many as can be sent.
RATES = (50e3, 250e3, 500e3, 750e3, 1e6, 1.25e6, 1.5e6, 0)
RATES_SIZES = (64, 300, 1024, 1472)
IMIX_FRAMES = (60, 590, 1514)
RECORD = struct.Struct("=IIQ")
BLOCK = 4096


@dataclass
class Pair:
    ours: Recorder
    rival: Recorder


def pairs(lab: Lab, writer: dict[str, str], short: bool) -> list[Pair]:
    """`writer`: the rival's best one for frames and for payloads."""
    found = [Pair(Ours(lab, layout, drive, *MEMORY, *more), Rival(lab, stored, writer[stored]))
             for layout, drive, stored, *more in (STORING_SHORT if short else STORING)]
    found += [Pair(OursNull(lab, layout, *MEMORY, *more), Rival(lab, stored, "null"))
              for layout, _, stored, *more in (NULL_SHORT if short else NULL_LAYOUTS)]
    return found if short else [*found, Pair(OursReceive(lab), Rival(lab, "frame", "null"))]


def members(pairs_of: list[Pair]) -> list[Recorder]:
    """Each recorder once, ours beside its rival."""
    return list({recorder.name: recorder for pair in pairs_of for recorder in (pair.ours, pair.rival)}.values())


def device_bytes(result: dict) -> float | None:
    return result.get("device_bytes", result.get("bytes_written"))


class Ratios:
    """Ours / the rival's, of runs of the same round."""

    def __init__(self, runs: list[dict], part: str):
        self.runs = defaultdict(dict)
        for run in runs:
            if run["part"] == part:
                self.runs[run["recorder"], run["target"], run["size"], run["receive"]][run["round"]] = run

    def system_cpu_per_packet(self, run: dict) -> float | None:
        """Seconds of the whole system, less what sending as many frames costs when everything is dropped."""
        for target in (run["target"], *dict.fromkeys(key[1] for key in self.runs)):
            if drop := self.runs.get((Drop.name, target, run["size"], run["receive"]), {}).get(run["round"]):
                spent = run["cpu"] - drop["cpu"] / drop["offered"] * run["offered"]
                return spent / run["stored"] if run["stored"] else None
        return None

    def of(self, ours: str, rival: str, target: str, size, receive: str, value) -> list[float]:
        mine, theirs = (self.runs.get((name, target, size, receive), {}) for name in (ours, rival))
        found = []
        for number in sorted(mine.keys() & theirs.keys()):
            a, b = value(mine[number]), value(theirs[number])
            if a is not None and b:
                found.append(a / b)
        return found

    def values(self, name: str, target: str, size, receive: str, value) -> list[float]:
        rounds = self.runs.get((name, target, size, receive), {})
        return [found for number in sorted(rounds) if (found := value(rounds[number])) is not None]


def stored_rate(run: dict) -> float:
    return run["stored_rate"]


def cpu_per_packet(run: dict) -> float | None:
    """Seconds of the process, in user and kernel mode."""
    return run["process_cpu"] / run["stored"] if run["stored"] else None


def core_per_packet(run: dict) -> float | None:
    """The same, with the kernel's receive work if a thread on the recorders' core does that."""
    return (run["process_cpu"] + run["receive_cpu"]) / run["stored"] if run["stored"] and "receive_cpu" in run else None


def loss(run: dict) -> float:
    """Of what arrived, in percent."""
    return 100 * run["lost"] / run["arrived"] if run["arrived"] else 0.0


def amplification(run: dict) -> float | None:
    return run["device_bytes"] / run["packet_bytes"] if run.get("device_bytes") and run.get("packet_bytes") else None


def summary(runs: list[dict], compared: list[dict], part: str) -> list[dict]:
    """Returns a row for each pair, target, size and core of the receive work: median, least and most of the rounds."""
    ratios, rows = Ratios(runs, part), []

    def three(values: list[float]) -> dict | None:
        return values and {"median": statistics.median(values), "min": min(values), "max": max(values)} or None

    keys = {(target, size, receive): None for _, target, size, receive in ratios.runs}
    for target, size, receive in keys:
        for pair in compared:
            key = (pair["ours"], pair["rival"], target, size, receive)
            rate = ratios.of(*key, stored_rate)
            if not rate:
                continue
            row = {"part": part, "ours": pair["ours"], "rival": pair["rival"], "target": target, "size": size,
                   "receive": receive, "rounds": len(rate),
                   # 0: as many as could be sent.
                   "asked_rate": statistics.median(ratios.values(pair["ours"], target, size, receive,
                                                                 lambda run: run["asked_rate"])),
                   "stored_rate": three(rate),
                   "cpu_per_packet": three(ratios.of(*key, cpu_per_packet)),
                   "with_receive_cpu_per_packet": three(ratios.of(*key, core_per_packet)),
                   "system_cpu_per_packet": three(ratios.of(*key, ratios.system_cpu_per_packet)),
                   "device_bytes": three(ratios.of(*key, amplification))}
            for who in ("ours", "rival"):
                values = {name: three(ratios.values(pair[who], target, size, receive, value)) for name, value in
                          (("stored_rate", stored_rate), ("cpu_per_packet", cpu_per_packet), ("loss", loss),
                           ("offered_rate", lambda run: run["offered_rate"]),
                           ("with_receive_cpu_per_packet", core_per_packet), ("device_bytes_per_byte", amplification),
                           ("system_cpu_per_packet", ratios.system_cpu_per_packet),
                           ("veth_dropped", lambda run: run["veth_dropped"]))}
                row[f"{who}_values"] = {name: value for name, value in values.items() if value}
            rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The medians of each figure, ours / the rival's, and the ratio with the least and the most of the rounds. Rates
    are in thousands a second. CPU time is that of the process."""
    def ratio(row: dict, name: str) -> str:
        found = row[name]
        return f"{found['median']:.2f} ({found['min']:.2f}..{found['max']:.2f})" if found else ""

    def both(row: dict, name: str, form: str, factor: float = 1) -> str:
        found = [row[f"{who}_values"].get(name) for who in ("ours", "rival")]
        return " / ".join(f"{v['median'] * factor:{form}}" for v in found) if all(found) else ""

    head = ["ours / rival", "target", "size", "receive on", "offered", "stored", "ratio", "lost, %", "CPU, ns/packet",
            "ratio", "device bytes/byte", "ratio"]
    lines = [head]
    for row in rows:
        lines.append([f"{row['ours'].removeprefix('unified ')} / {row['rival'].removeprefix('rival ')}", row["target"],
                      str(row["size"]), row["receive"], both(row, "offered_rate", ".0f", 1e-3),
                      both(row, "stored_rate", ".0f", 1e-3), ratio(row, "stored_rate"), both(row, "loss", ".1f"),
                      both(row, "cpu_per_packet", ".0f", 1e9), ratio(row, "cpu_per_packet"),
                      both(row, "device_bytes_per_byte", ".2f"), ratio(row, "device_bytes")])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(text) + "\n"


def picture(runs: list[dict], path: Path) -> None:
    """What each recorder stores of what is offered: a panel for each size."""
    runs = [run for run in runs if run["part"] == "rates"]
    names = list({run["recorder"]: None for run in runs})
    sizes = list({run["size"]: None for run in runs})
    figure, panels = report.plt.subplots(1, len(sizes), figsize=(3.2 * len(sizes), 3.4), squeeze=False, sharey=True)
    for panel, size in zip(panels[0], sizes):
        most = 0
        for name in names:
            asked = defaultdict(list)
            for run in runs:
                if (run["recorder"], run["size"]) == (name, size):
                    asked[run["asked_rate"]].append((run["offered_rate"] / 1e6, run["stored_rate"] / 1e6))
            points = sorted(tuple(map(statistics.median, zip(*found))) for found in asked.values())
            most = max([most, *(offered for offered, _ in points)])
            panel.plot(*zip(*points), marker="o", markersize=3, label=name,
                       linestyle="--" if name.startswith("rival") else "-")
        panel.plot([0, most], [0, most], color="lightgrey", linewidth=1, zorder=0)
        panel.set(title=f"{size} bytes", xlabel="offered, million/s", xlim=(0, None), ylim=(0, None))
    panels[0][0].set_ylabel("stored, million/s")
    panels[0][-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)


def rates_table(runs: list[dict]) -> str:
    """Medians at each rate. CPU time is that of the process."""
    kinds = defaultdict(list)
    for run in runs:
        if run["part"] == "rates":
            kinds[run["size"], run["asked_rate"] or float("inf"), run["recorder"]].append(run)
    rows = []
    for (size, rate, name), found in sorted(kinds.items()):
        offered, stored, lost, spent = (statistics.median(map(value, found)) for value in
                                        (lambda run: run["offered_rate"], stored_rate, loss, cpu_per_packet))
        rows.append([str(size), "most" if rate == float("inf") else f"{rate / 1e3:.0f}", name, f"{offered / 1e3:.0f}",
                     f"{stored / 1e3:.0f}", f"{lost:.1f}", f"{spent * 1e9:.0f}"])
    return report.table(["payload", "asked, thousand/s", "recorder", "offered", "stored", "lost, %", "CPU, ns/packet"],
                        rows)


def noise(runs: list[dict]) -> str:
    """What others did on this machine meanwhile."""
    shares = [run["foreign_cpu"] / run["window"] for run in runs if run.get("window")]
    return (f"Other processes took {statistics.median(shares):.1f} cores in the median run, {max(shares):.1f} at most."
            if shares else "")


# --- whether the rival has stored what came


def verify(rival: Rival, path: Path, result: dict, sent: dict, size: int | str) -> None:
    """Reads back what the rival has written from the start of the file. `RuntimeError` if it is not what was sent."""
    def wrong(what: str):
        raise RuntimeError(f"{rival.name}, payloads of {size}: {what}")

    headers = FRAME_HEADERS if rival.stored == "frame" else 0
    frames = IMIX_FRAMES if size == "imix" else (size + FRAME_HEADERS,)
    longest = bytes(i & 0xff for i in range(max(frames) - FRAME_HEADERS))
    with open(path, "rb") as file:
        data = file.read(int(result["device_bytes"]))
    position, count, expected, missing, before = 0, 0, 0, 0, 0
    while count < result["stored"]:
        if position + RECORD.size > len(data):
            wrong(f"only {count} of {result['stored']} records are in what was written")
        length, _, time = RECORD.unpack_from(data, position)
        if length == 0:
            if position % BLOCK == 0:
                wrong(f"no record at byte {position}")
            position = -(-position // BLOCK) * BLOCK
            continue
        packet = data[position + RECORD.size:position + RECORD.size + length]
        payload = packet[headers:]
        if length - headers + FRAME_HEADERS not in frames:
            wrong(f"record {count} has {length} bytes")
        if headers and (int.from_bytes(packet[16:18], "big") != length - 14
                        or int.from_bytes(packet[36:38], "big") != PORT or checksum(packet[14:34]) != 0xffff):
            wrong(f"record {count} has other headers than were sent")
        number = int.from_bytes(payload[:8], "little")
        if number < expected or time < before:
            wrong(f"record {count} is out of order")
        if payload[8:] != longest[8:len(payload)]:
            wrong(f"record {count} has another payload than was sent")
        missing += number - expected
        expected, before = number + 1, time
        position += -(-(RECORD.size + length) // 4) * 4
        count += 1
    missing += int(sent["offered"]) - expected
    if missing != sent["offered"] - result["stored"]:
        wrong(f"{missing} sequence numbers are missing, but {sent['offered'] - result['stored']:.0f} packets")
    if -(-position // BLOCK) * BLOCK != len(data):
        wrong(f"{len(data)} bytes were written, and the records end at {position}")


def checksum(header: bytes) -> int:
    """0xffff if the header's own checksum is right."""
    total = sum(int.from_bytes(header[i:i + 2], "big") for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total
