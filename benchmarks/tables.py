"""Figures of a run as Markdown, and as what is kept beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.load import Window, percentile

HEAD = (
    "| server | clients | answers/s | p50 ms | p99 ms | peak MiB | errors |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Measured:
    """One window: what the clients saw, and the server's largest memory in bytes."""

    concurrency: int
    window: Window
    peak_bytes: int
    start_s: float


@dataclass(frozen=True)
class Row:
    """One server at one concurrency, over all rounds.

    Answers a second are the rounds' median; latencies in milliseconds are percentiles of all
    rounds' requests together; memory in MiB is the largest of all rounds.
    """

    server: str
    concurrency: int
    throughput: float
    p50: float
    p99: float
    peak: float
    errors: int
    requests: int
    client_cores: float


@dataclass
class Record:
    """All windows of one shape. `layouts`: processes, and threads in each."""

    shape: str
    title: str
    titles: dict[str, str]
    layouts: dict[str, tuple[int, int]] = field(default_factory=dict)
    floors: dict[str, list[float]] = field(default_factory=dict)
    windows: dict[str, list[Measured]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def add(self, server: str, measured: list[Measured], agreement: float) -> None:
        """Take a round of one server."""
        self.windows.setdefault(server, []).extend(measured)
        self.agreement[server] = min(agreement, self.agreement.get(server, 1.0))

    def rows(self) -> list[Row]:
        """Sum up every server at every concurrency."""
        return [
            row_of(server, concurrency, [m for m in all_of_it if m.concurrency == concurrency])
            for server, all_of_it in self.windows.items()
            for concurrency in sorted({m.concurrency for m in all_of_it})
        ]

    def figures(self) -> dict[str, object]:
        """Give everything that can be written as JSON."""
        return {
            "shape": self.shape,
            "title": self.title,
            "layouts": self.layouts,
            "agreement": self.agreement,
            "floors": {name: median(rates) for name, rates in self.floors.items()},
            "rounds": {
                server: [
                    [m.concurrency, round(m.window.throughput, 3), m.peak_bytes] for m in measured
                ]
                for server, measured in self.windows.items()
            },
            "start_s": {
                server: median(m.start_s for m in measured)
                for server, measured in self.windows.items()
            },
            "rows": [row.__dict__ for row in self.rows()],
        }


def row_of(server: str, concurrency: int, measured: list[Measured]) -> Row:
    """Sum up one server at one concurrency."""
    latencies = [1000 * spent for m in measured for spent in m.window.latencies]
    return Row(
        server,
        concurrency,
        median(m.window.throughput for m in measured),
        percentile(latencies, 0.5),
        percentile(latencies, 0.99),
        max(m.peak_bytes for m in measured) / 2**20,
        sum(m.window.errors for m in measured),
        len(latencies),
        median(m.window.client_cores for m in measured),
    )


def table(records: list[Record], facts: dict[str, str]) -> str:
    """Write all shapes' tables, with the machine's facts above."""
    parts = ["; ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    parts += [shape_table(record) for record in records]
    return "\n\n".join(parts) + "\n"


def shape_table(record: Record) -> str:
    """Write one shape's table: the floors, then the servers."""
    lines = [f"### {record.title}", "", HEAD]
    for name, rates in record.floors.items():
        lines.append(f"| floor: {name} | | {median(rates):.1f} | | | | |")
    for row in record.rows():
        workers, threads = record.layouts[row.server]
        lines.append(
            f"| {record.titles[row.server]} ({workers}x{threads}) | {row.concurrency} "
            f"| {row.throughput:.1f} | {row.p50:.0f} | {row.p99:.0f} | {row.peak:.0f} "
            f"| {row.errors} |"
        )
    return "\n".join([*lines, "", ratios(record)])


def best_rates(record: Record, server: str) -> list[float]:
    """Give a server's answers a second at its best concurrency, round by round."""
    windows = record.windows[server]
    step = len({measured.concurrency for measured in windows})
    return [
        max(measured.window.throughput for measured in windows[start : start + step])
        for start in range(0, len(windows), step)
    ]


def times(rates: list[float], others: list[float]) -> float:
    """Compare within each round, and give the median of the ratios."""
    return median(one / other for one, other in zip(rates, others, strict=True))


def ratios(record: Record) -> str:
    """Say in figures how this service stands to the floor, to the best of the others, to itself."""
    best = {server: best_rates(record, server) for server in record.windows}
    others = {name: rates for name, rates in best.items() if not name.startswith("segcal")}
    peer = max(others, key=lambda name: median(others[name]), default=None)
    sentences = []
    if "segcal" in best:
        ours = best["segcal"]
        loops = [rates for name, rates in record.floors.items() if name.startswith("session")]
        floor = [max(round_) for round_ in zip(*loops, strict=True)]
        sentences.append(f"best rate {times(ours, floor):.2f} of the best bare session loop")
        if peer is not None:
            title = record.titles[peer]
            sentences.append(
                f"{times(ours, others[peer]):.2f} times {title}, the best other server"
            )
        if peer is not None and "segcal-int8" in best:
            quick = times(best["segcal-int8"], others[peer])
            sentences.append(f"{quick:.2f} times that with the int8 backbone")
        if "segcal-none" in best:
            cost = times(best["segcal-none"], ours)
            sentences.append(f"calibration costs {cost:.3f} times the uncalibrated answer")
        rows = [row for row in record.rows() if row.server == "segcal"]
        busiest = max(rows, key=lambda row: row.concurrency)
        sentences.append(
            f"p99 at {busiest.concurrency} clients {busiest.p99 / busiest.p50:.2f} times p50"
        )
    agreement = min(record.agreement.values(), default=1.0)
    clients = max((row.client_cores for row in record.rows()), default=0.0)
    sentences.append(f"masks of the same network agree on {agreement:.3%} of the pixels or more")
    sentences.append(f"the clients took at most {clients:.2f} of a core")
    return (
        "This service (ratios within a round, median of rounds, each server at its best number of "
        f"clients): {'; '.join(sentences)}."
    )


def put_table(file: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a Markdown file."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = file.read_text()
    before, found, rest = page.partition(opening)
    _, ends, after = rest.partition(closing)
    if not (found and ends):
        raise SystemExit(f"expected {opening} and {closing} in {file}, got none")
    file.write_text(f"{before}{opening}\n{text}{closing}{after}")
