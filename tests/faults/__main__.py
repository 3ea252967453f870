"""`make faults`: the fault suite in its long form, and a table of what came of it.

Exit code 1 if anything acknowledged is missing, changed or doubled.

The kills are drawn from the seed; how the processes meet them is not, so no two runs are alike.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.replica import brokers, own_topics
from tests.faults.scenarios import Figures, kill_everything, take_the_broker_away
from tests.kafka_broker import kafka_home


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="to be acknowledged while things die")
    parser.add_argument("--kills", type=int, default=20, help="of each of gateway, relay and broker")
    parser.add_argument("--outage", type=float, default=600, metavar="S", help="seconds without a broker")
    parser.add_argument("--rate", type=float, default=50, help="requests per second meanwhile")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if kafka_home() is None:
        parser.error("set KAFKA_HOME to an unpacked Apache Kafka 4 download, with java 17 on the PATH")
    right = True
    with (
        tempfile.TemporaryDirectory(prefix="apprentice-faults-") as scratch,
        tempfile.TemporaryDirectory(prefix="apprentice-brokers-") as data,
        brokers(given.brokers, Path(data)) as cluster,
    ):
        if given.records:
            place = Path(scratch, "kills")
            figures = kill_everything(
                place, cluster, records=given.records, kills=given.kills, seed=given.seed
            )
            right &= show("everything is killed at random", figures)
        if given.outage:
            place = Path(scratch, "outage")
            figures = take_the_broker_away(place, own_topics(cluster), seconds=given.outage, rate=given.rate)
            right &= show("no broker", figures) and not figures.ledger.failures
    return 0 if right else 1


def show(title: str, figures: Figures) -> bool:
    """Print a scenario's table; whether nothing is wrong in the log."""
    ledger, findings = figures.ledger, figures.findings
    rows = {
        "SIGKILLs": ", ".join(f"{name} {count}" for name, count in figures.kills.items()) or "none",
        "requests": f"{ledger.calls} in {figures.seconds:.0f} s",
        "without an acknowledgement": f"{sum(ledger.failures.values())} {dict(ledger.failures) or ''}",
        "acknowledged records": ledger.records,
        "drained after": f"{figures.drain_s:.1f} s",
        "redelivered, dropped by readers": findings.redelivered,
        **{name: findings.wrong.get(name, 0) for name in
           ("lost", "changed", "unseen", "duplicate", "out_of_order", "invented")},
    }  # fmt: skip
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name.replace('_', ' '):<32} {value}")
    return not findings.wrong


if __name__ == "__main__":
    sys.exit(main())
