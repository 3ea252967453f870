"""`apprentice bench WHAT`: which benchmark, and no more; it is loaded once it is known."""

from collections.abc import Mapping, Sequence

from server.commands.command import EXITS, OK, parser

BENCHES: Mapping[str, tuple[str, str]] = {
    "buffer": ("server.commands.bench_buffer:main", "the log: its journal, feedback over HTTP, the relay"),
    "learning": ("learner.bench.command:main", "what is learned, kept and leaked, with controls (hours)"),
    "step": ("learner.bench.command:main", "what one optimiser step costs"),
}
"""As `server.cli.COMMANDS`. A target gets the benchmark's name among its arguments."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that is named; everything else is for it to parse."""
    named = next((word for word in argv if word in BENCHES), None)
    if named is None:
        made = parser("bench", "Measure on this machine, beside what it is compared to.", EXITS)
        what = "\n".join(f"  {name:10}{about}" for name, (_, about) in BENCHES.items())
        made.epilog = f"benchmarks:\n{what}\n\n{made.epilog}"
        made.add_argument("what", choices=BENCHES, metavar="WHAT", help="one of those below")
        made.parse_args(argv)  # prints help or the error, and exits
        return OK
    from server.cli import resolve

    return resolve(BENCHES[named][0])(argv)
