# SPDX-License-Identifier: MIT OR Apache-2.0
"""From single runs to medians, a table, and plots."""

import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

MIB = 1 << 20
RX_ONLY = ("testpmd rx-only", "unified rx-only")
# Identical input makes identical plots.
matplotlib.rcParams["svg.hashsalt"] = "unified"


def median(values) -> float | None:
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def show(value, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(" --- " for _ in head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


class Results:
    def __init__(self, results: dict):
        self.about = results["about"]
        self.peers = self.about["peers"]
        self.by_part = defaultdict(lambda: defaultdict(list))
        for entry in results["runs"]:
            if "who" in entry:
                key = (entry["who"], entry["target"], entry["order"], entry["block"], entry["depth"])
            else:
                key = (entry["recorder"], entry["target"], entry["size"])
            self.by_part[entry["part"]][key].append(entry)

    def keys(self, part: str) -> list[tuple]:
        return sorted(self.by_part[part], key=lambda k: (k[1], k[2], list(self.peers).index(k[0])
                                                         if k[0] in self.peers else -1))

    def of(self, part: str, *key) -> list[dict]:
        return self.by_part[part].get(key, [])

    def storage(self, *key, part: str = "storage") -> float | None:
        return median(run["rate"] for run in self.of(part, *key))

    def write_only(self, name: str, target: str, size: int, part: str = "storage") -> float | None:
        """Packets a second that the device takes in the way in which this recorder writes."""
        peer = self.peers[name]
        if peer["own"]:
            # Block after block, which the engine merges.
            blocks = self.storage("unified inline", target, "sequential", 2048, 1024, part=part)
            return blocks and blocks * 2048 / self.stored_bytes(peer, size)
        rate = self.storage("fio", target, "sequential", MIB, 4, part=part)
        return rate and rate * MIB / self.stored_bytes(peer, size)

    @staticmethod
    def stored_bytes(peer: dict, size: int) -> int:
        """For a packet. (The keys of JSON are strings.)"""
        return peer["bytes"][str(size) if str(size) in peer["bytes"] else size]

    def rx_only(self, part: str, size: int, number: int) -> float | None:
        rates = [runs[number]["stored_rate"] for name in RX_ONLY
                 if len(runs := self.of(part, name, "none", size)) > number]
        return max(rates, default=None)

    def ratio(self, name: str, target: str, size: int, part: str = "flood") -> float | None:
        """stored / min(rx-only, write-only), round by round."""
        storage = "slow storage" if part == "slow" else "storage"
        device, found = self.write_only(name, target, size, storage), []
        for number, run in enumerate(self.of(part, name, target, size)):
            receive = self.rx_only(part, size, number)
            bounds = [bound for bound in (receive, device) if bound]
            if bounds:
                found.append(run["stored_rate"] / min(bounds))
        return median(found)

    def own_cpu(self, part: str, name: str, target: str, size: int) -> list[tuple[float, dict]]:
        """CPU seconds of each run less what the sender costs when everything is dropped."""
        drops = self.of(part, "XDP_DROP", "none", size)
        return [(run["cpu"] - drop["cpu"] / drop["offered"] * run["offered"], run)
                for run, drop in zip(self.of(part, name, target, size), drops)]

    def cpu_per_gb(self, part: str, name: str, target: str, size: int) -> float | None:
        return median(cpu / (run["stored"] * size / 1e9) for cpu, run in self.own_cpu(part, name, target, size)
                      if run["stored"])

    def ns_per_packet(self, part: str, name: str, target: str, size: int) -> float | None:
        return median(cpu / run["stored"] * 1e9 for cpu, run in self.own_cpu(part, name, target, size)
                      if run["stored"])

    def lossless(self, name: str, target: str, size: int) -> dict | None:
        return next(iter(self.of("lossless", name, target, size)), None)

    def bound(self, name: str, target: str, size: int) -> str:
        runs = self.of("flood", name, target, size)
        lost = median(run["lost"] / run["offered"] for run in runs)
        device = self.write_only(name, target, size) if self.peers[name]["stores"] else None
        if lost < 0.01:
            return "sender"
        if device and median(run["stored_rate"] for run in runs) > 0.85 * device:
            return "device"
        return "receive"

    def calls(self, name: str, target: str, size: int) -> float | None:
        return median(run["calls_per_packet"] for run in self.of("calls", name, target, size))

    # --- tables

    def main_table(self, target: str, size: int) -> str:
        rows = []
        names = [k[0] for k in self.keys("flood") if k[1] in (target, "none") and k[2] == size]
        for name in sorted(set(names), key=names.index):
            place = target if (name, target, size) in self.by_part["flood"] else "none"
            runs = self.of("flood", name, place, size)
            stores = name in self.peers and self.peers[name]["stores"]
            peer = self.peers.get(name)
            free = self.lossless(name, target, size) if stores else None
            operations = median(run["operations"] / run["stored"] for run in runs
                                if run.get("operations") and run["stored"])
            rows.append([
                name, show(median(r["offered_rate"] for r in runs) / 1e3, ".0f"),
                "" if not peer else show(median(r["stored_rate"] for r in runs) / 1e3, ".0f"),
                "" if not peer else show(median(r["lost"] / r["offered"] for r in runs) * 100, ".1f"),
                show(self.ratio(name, target, size) if stores else None, ".2f"),
                show(free and free["stored_rate"] / 1e3, ".0f") + (
                    " (sender)" if free and free["stored_rate"] and free["bound"] == "sender" else ""),
                show(self.cpu_per_gb("paced", name, place, size) if peer else None, ".2f"),
                show(self.cpu_per_gb("flood", name, place, size) if peer else None, ".2f"),
                show(self.calls(name, place, size), ".3f"), show(operations, ".4f") if stores else "",
                str(peer["copies"] + (peer["o_direct"] and target == "tmpfs")) if stores else "",
                self.bound(name, place, size) if peer else "sender",
                show(median(r["load"] for r in runs), ".1f"),
            ])
        return table(["recorder", "offered, thousand/s", "stored", "lost, %", "stored / min(rx, write)",
                      "no loss up to", "CPU s/GB paced", "CPU s/GB flood", "system calls / packet",
                      "commands / packet", "copies", "bound", "load"], rows)

    def goals(self) -> str:
        """Ours against the best of the others."""
        rows = []
        own = [n for n, p in self.peers.items() if p.get("own") and p["stores"]]
        others = [n for n, p in self.peers.items() if p.get("stores") and not p["own"]]
        for target in self.about["targets"]:
            for size in self.about["sizes"]:
                for name in own:
                    free = self.lossless(name, target, size)
                    best = max((f["stored_rate"] for n in others if (f := self.lossless(n, target, size))),
                               default=0)
                    cpu = []
                    for part in ("paced", "flood"):
                        mine = self.cpu_per_gb(part, name, target, size)
                        cheapest = min((c for n in others if (c := self.cpu_per_gb(part, n, target, size))),
                                       default=None)
                        cpu.append(show(mine / cheapest if mine and cheapest else None, ".2f"))
                    rows.append([target, str(size), name, show(self.ratio(name, target, size), ".2f"),
                                 show(free["stored_rate"] / best if free and best else None, ".2f"),
                                 *cpu, show(self.calls(name, target, size), ".3f")])
        return table(["target", "payload", "recorder", "stored / min(rx, write)", "no-loss rate / best other",
                      "CPU s/GB / best other, paced", "flood", "system calls / packet"], rows)

    def null_cost(self) -> str:
        rows = [[str(size), *(show(self.ns_per_packet(part, f"unified {layout} null", "none", size), ".0f")
                              for layout in ("payload", "slot") for part in ("paced", "flood"))]
                for size in self.about["sizes"]]
        return table(["payload", "payload layout paced, ns", "flood, ns", "slot layout paced, ns", "flood, ns"], rows)

    def overrun_table(self) -> str:
        def rate(name: str, target: str, size: int) -> float | None:
            return median(r["stored_rate"] for r in self.of("overrun", name, target, size))

        rows = []
        for name, target, size in self.keys("overrun"):
            runs, peer = self.of("overrun", name, target, size), self.peers.get(name)
            best = max((found for n, p in self.peers.items() if p.get("stores") and not p["own"]
                        and (found := rate(n, target, size))), default=None)
            ours = peer and peer["own"] and peer["stores"]
            rows.append([target, str(size), name, show(median(r["offered_rate"] for r in runs) / 1e3, ".0f"),
                         show(rate(name, target, size) / 1e3, ".0f") if peer else "",
                         show(median(r["lost"] / r["offered"] for r in runs) * 100, ".1f") if peer else "",
                         show(self.ratio(name, target, size, "overrun") if peer and peer["stores"] else None, ".2f"),
                         show(rate(name, target, size) / best if ours and best else None, ".2f")])
        return table(["target", "payload", "recorder", "offered, thousand/s", "stored", "lost, %",
                      "stored / min(rx, write)", "stored / best other"], rows)

    def slow_table(self) -> str:
        rows = []
        for name, target, size in self.keys("slow"):
            if target == "none":
                continue
            runs = self.of("slow", name, target, size)
            rows.append([target, str(size), name, show(median(r["offered_rate"] for r in runs) / 1e3, ".0f"),
                         show(median(r["stored_rate"] for r in runs) / 1e3, ".1f"),
                         show(self.write_only(name, target, size, "slow storage") / 1e3, ".1f"),
                         show(self.ratio(name, target, size, "slow"), ".2f")])
        return table(["target", "payload", "recorder", "offered, thousand/s", "stored", "write-only",
                      "stored / min(rx, write)"], rows)

    def options_table(self) -> str:
        rows = []
        for name, target, size in sorted(self.by_part["options flood"]):
            if target == "none":
                continue
            runs = self.of("options flood", name, target, size)
            rows.append([name, target, str(size), show(median(r["offered_rate"] for r in runs) / 1e3, ".0f"),
                         show(median(r["stored_rate"] for r in runs) / 1e3, ".0f"),
                         show(median(r["lost"] / r["offered"] for r in runs) * 100, ".1f"),
                         *(show(self.cpu_per_gb(f"options {how}", name, target, size), ".2f")
                           for how in ("flood", "paced"))])
        return table(["recorder", "target", "payload", "offered, thousand/s", "stored", "lost, %", "CPU s/GB flood",
                      "CPU s/GB paced"], rows)

    def latency_table(self) -> str:
        rows = []
        for name, target, size in sorted(self.by_part["latency"]):
            runs = self.of("latency", name, target, size)
            rows.append([name, target, str(size), *(show(median(r[q] for r in runs) / 1e3, ".0f")
                                                    for q in ("p50_ns", "p99_ns", "p999_ns"))])
        return table(["recorder", "target", "payload", "p50, us", "p99, us", "p99.9, us"], rows)

    def fio_ratios(self, part: str = "storage") -> list[tuple[int, int, str, float, float, float]]:
        """Block, depth, drive, our rate, fio's, and the median of the rounds' ratios."""
        found = []
        for who, target, order, block, depth in sorted(self.by_part[part]):
            fio = self.of(part, "fio", target, order, block, depth)
            if order == "equal" and who != "fio" and fio:
                ours = self.of(part, who, target, order, block, depth)
                found.append((block, depth, who, median(r["rate"] for r in ours), median(r["rate"] for r in fio),
                              median(a["rate"] / b["rate"] for a, b in zip(ours, fio))))
        return found

    def storage_table(self, part: str = "storage") -> str:
        rows = [[str(block), str(depth), who, show(ours / 1e3, ".1f"), show(fio / 1e3, ".1f"), show(ratio, ".2f")]
                for block, depth, who, ours, fio, ratio in self.fio_ratios(part)]
        return table(["block", "depth", "ours", "thousand writes/s", "fio", "ratio"], rows)

    def ceilings(self) -> str:
        rows = []
        for who, target, order, block, depth in sorted(self.by_part["storage"]):
            if order != "equal":
                rate = self.storage(who, target, order, block, depth)
                rows.append([target, who, order, str(block), str(depth), show(rate / 1e3, ".1f"),
                             show(rate * block / 1e9, ".2f")])
        return table(["target", "who", "order", "block", "depth", "thousand/s", "GB/s"], rows)

    def peers_table(self) -> str:
        return table(["recorder", "version", "command"],
                     [[name, peer["version"], f"`{peer['command']}`" if "command" in peer else ""]
                      for name, peer in self.peers.items()]) + "".join(
            f"\nLeft out: {name}: {why}\n" for name, why in self.about["left_out"].items())

    def markdown(self) -> str:
        about = self.about
        parts = defaultdict(list)
        for part, when in about["measured"].items():
            parts[when].append(part)
        when = "; ".join(f"{when} ({', '.join(names)})" for when, names in parts.items())
        text = [f"Measured {when}: kernel {about['kernel']}, {about['cpu']}, "
                f"{about['cores']} cores; load average before {about['load_before']}, after {about['load_after']}. "
                f"Medians of the rounds, which are interleaved, of {about['seconds']} s each.\n"]
        if self.by_part["flood"]:
            text.append("### Ours and the best of the others\n\n" + self.goals())
            for target in about["targets"]:
                for size in about["sizes"]:
                    label = " (buffered: tmpfs has no direct I/O)" if target == "tmpfs" else ""
                    text.append(f"### To {target}{label}, {size} byte payloads\n\n" + self.main_table(target, size))
            text.append("### CPU time per packet, nothing stored\n\n" + self.null_cost())
        if self.by_part["overrun"]:
            text.append("### More offered than anybody takes\n\nThe kernel's receive work is on the recorders' core.\n\n"
                        + self.overrun_table())
        if self.by_part["slow"]:
            text.append(f"### A disk that takes {about['slow_rate'] / 1e6:.0f} MB/s\n\nStored: until all is written.\n\n"
                        + self.slow_table())
        if self.by_part["options flood"]:
            text.append("### What can be turned\n\n" + self.options_table())
        if self.by_part["latency"]:
            text.append(f"### Packet to completion, {about['latency_rate']} packets/s\n\n" + self.latency_table())
        if self.by_part["storage"]:
            text.append("### The same random writes by this library and by fio\n\n" + self.storage_table())
            text.append("### What the storage takes\n\n" + self.ceilings())
        if self.by_part["guest"]:
            text.append("### The same random writes through NVMe passthrough, in the guest\n\n"
                        "Its processors are emulated: the ratio counts, and what it says is which of the two has the "
                        "longer way through its code.\n\n" + self.storage_table("guest"))
        text.append("### What was measured\n\n" + self.peers_table())
        return "\n".join(text)

    # --- plots

    def lines(self, path: Path, title: str, unit: str, part: str, value) -> None:
        """One panel a target: a line for each recorder over the payload size."""
        targets = self.about["targets"]
        figure, panels = plt.subplots(1, len(targets), figsize=(5.5 * len(targets), 4.2), squeeze=False,
                                      sharey=True)
        for panel, target in zip(panels[0], targets):
            for name, peer in self.peers.items():
                place = target if peer.get("stores") else "none"
                points = [(size, v) for size in self.about["sizes"]
                          if self.of(part, name, place, size) and (v := value(name, place, size)) is not None]
                if points:
                    panel.plot(*zip(*points), marker="o", label=name, linestyle="-" if peer["own"] else "--")
            panel.set(title=f"{title}, {target}", xlabel="payload, bytes", ylim=(0, None))
        panels[0][0].set_ylabel(unit)
        panels[0][-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)

    def bars(self, path: Path, title: str, unit: str, groups: list[tuple[str, list[float]]], labels: list[str],
             log: bool = False) -> None:
        figure, panel = plt.subplots(figsize=(8, 4))
        for i, label in enumerate(labels):
            panel.bar([g + i * 0.8 / len(labels) for g in range(len(groups))], [values[i] for _, values in groups],
                      width=0.8 / len(labels), label=label, align="edge")
        panel.set_xticks([g + 0.4 for g in range(len(groups))], [name for name, _ in groups], fontsize="x-small")
        panel.set(title=title, ylabel=unit, yscale="log" if log else "linear")
        panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)

    def plots(self, out: Path) -> list[Path]:
        made = []

        def lines(name, *args):
            self.lines(out / f"{name}.svg", *args)
            made.append(out / f"{name}.svg")

        if self.by_part["flood"]:
            lines("stored", "Stored at full rate", "thousand packets/s", "flood",
                  lambda *key: median(r["stored_rate"] / 1e3 for r in self.of("flood", *key)))
        if self.by_part["paced"]:
            lines("cpu", "CPU time", "CPU seconds per GB of payload", "paced",
                  lambda *key: self.cpu_per_gb("paced", *key))
        if self.by_part["lossless"]:
            lines("lossless", "No loss up to", "thousand packets/s", "lossless",
                  lambda *key: self.lossless(*key)["stored_rate"] / 1e3)
        if self.by_part["latency"]:
            quantiles = ["p50_ns", "p99_ns", "p999_ns"]
            groups = [(f"{name}\n{target}", [median(r[q] for r in runs) / 1e3 for q in quantiles])
                      for (name, target, _), runs in sorted(self.by_part["latency"].items())]
            self.bars(out / "latency.svg", "Packet to completion", "us", groups, ["p50", "p99", "p99.9"], log=True)
            made.append(out / "latency.svg")
        if ratios := self.fio_ratios():
            groups = [(f"{who.split()[1]}\n{block} B\ndepth {depth}", [ours / 1e3, fio / 1e3])
                      for block, depth, who, ours, fio, _ in ratios]
            self.bars(out / "fio.svg", "Random writes, O_DIRECT", "thousand writes/s", groups, ["unified", "fio"])
            made.append(out / "fio.svg")
        return made


def save(figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def write(results: dict, out: Path) -> list[Path]:
    """results.md and the plots; what was written."""
    found = Results(results)
    plots = found.plots(out)
    pictures = "".join(f"![{plot.stem}]({plot.name})\n\n" for plot in plots)
    (out / "results.md").write_text("# Results\n\n" + found.markdown() + "\n" + pictures.rstrip("\n") + "\n")
    return [out / "results.md", *plots]
