"""The alerts: each fires where it must and is silent just short of that, and each has its runbook entry."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.tools import PROMETHEUS, ROOT, program, run

Series = dict[str, str]
"""A series to its values, a minute apart, as promtool writes them: `0+1x5` is 0 1 2 3 4 5."""

UP = 'up{job="apprentice",instance="a"}'
READY = 'apprentice_ready{instance="a"}'
LAG = 'apprentice_view_lag_records{instance="a"}'
HEARD = 'apprentice_learner_report_age_seconds{instance="a"}'
SERVED = 'apprentice_live_policy_version{instance="a"}'
LOGGED = 'apprentice_log_policy_version{instance="a"}'
STEP = 'apprentice_learner_step{instance="a"}'
HEALTHY: Series = {UP: "1x2000", READY: "1x2000", LAG: "0x2000", HEARD: "5x2000"}
GIB, MIB = 1 << 30, 1 << 20


class Case(NamedTuple):
    """Series that make an alert fire at `minute`, and series that do not."""

    fires: Series
    quiet: Series
    minute: int = 40


def of(name: str, fires: str, quiet: str, minute: int = 40) -> Case:
    """For an alert on one series of server `a`."""
    labels = f'{name[:-1]},instance="a"}}' if name.endswith("}") else f'{name}{{instance="a"}}'
    return Case({f"apprentice_{labels}": fires}, {f"apprentice_{labels}": quiet}, minute)


def requests(failed: str, refused: str = "0x60") -> Series:
    kinds = {"ok": "0+90x60", "engine_unavailable": failed, "invalid_request": refused}
    return {
        f'apprentice_requests_total{{route="chat",outcome="{kind}",instance="a"}}': values
        for kind, values in kinds.items()
    }


def histogram(name: str, bounds: dict[str, str]) -> Series:
    return {f'apprentice_{name}_bucket{{le="{le}",instance="a"}}': values for le, values in bounds.items()}


def learner(state: str, more: Series | None = None) -> Series:
    return {f'apprentice_learner_state{{state="{state}",instance="a"}}': "1x2000", **(more or {})}


CASES = {
    "NothingServes": Case({READY: "0x9"}, {READY: "0x9", 'apprentice_ready{instance="b"}': "1x9"}, 5),
    "ServerDown": Case({UP: "0x9"}, {UP: "1 0x1 1x9"}, 5),
    "NotServing": of("ready", "0x50", "0x8 1x40"),
    "EngineRestarting": of("engine_starts", "1x9 2x9 3x9 4x30", "1x9 2x50", 35),
    "ErrorRate": Case(requests("0+10x60"), requests("0+1x60", refused="0+50x60")),
    "InternalErrors": of('refusals_total{reason="internal_error"}', "0x35 1x9", "3x60"),
    "SlowFirstToken": Case(
        histogram("first_token_seconds", {"10": "0+9x60", "30": "0+10x60", "+Inf": "0+10x60"}),
        histogram("first_token_seconds", {"10": "0+99x60", "30": "0+100x60", "+Inf": "0+100x60"}),
    ),
    "SlowAnswers": Case(
        histogram("request_seconds", {"60": "0+9x60", "120": "0+10x60", "+Inf": "0+10x60"}),
        histogram("request_seconds", {"60": "0+99x60", "120": "0+100x60", "+Inf": "0+100x60"}),
    ),
    "PolicyNotServed": Case(
        {SERVED: "1x60", LOGGED: "2x60"},
        {SERVED: "1x5 2x60", LOGGED: "2x60"},
    ),
    "ReleaseRejected": of('releases_total{outcome="refused"}', "0x20 1x40", "1x60"),
    "StoreFailing": of('store_failures_total{reason="unreachable"}', "0+2x60", "0 1x60"),
    "LogNotWritable": of("log_writable", "0x60", "0x9 1x60"),
    "Uncaptured": Case(
        {
            'apprentice_uncaptured_total{reason="log_full",instance="a"}': "0x38 1x9",
            'apprentice_capture_failures_total{instance="a"}': "0x60",
        },
        {
            'apprentice_uncaptured_total{reason="log_full",instance="a"}': "7x60",
            'apprentice_capture_failures_total{instance="a"}': "1x60",
        },
    ),
    "DiskLow": of("disk_free_bytes", f"{2 * GIB - 1}x60", f"{2 * GIB}x60"),
    "DiskAlmostFull": of("disk_free_bytes", f"{256 * MIB - 1}x60", f"{256 * MIB}x60"),
    "RelayBehind": of("log_pending_seconds", "0+60x60", "290x60"),
    "RecordsSetAside": of("log_set_aside_records", "1x60", "0x60"),
    "RecordsPassedOver": of('records_passed_over{type="other"}', "1x60", "0x60"),
    "ViewBehind": of("view_lag_records", "1001x60", "0x30 5000x5 0x30"),
    "LogNotRead": Case({LAG: "_x60"}, {LAG: "_x38 7x9"}),
    "LearnerNeverHeard": Case({HEARD: "_x60"}, {HEARD: "_x20 5x60"}),
    "LearnerSilent": Case({HEARD: "0+60x60"}, {HEARD: "0+60x60", **learner("stopped")}),
    "LearnerStopped": Case(learner("stopped"), learner("waiting"), 70),
    "LearnerStuck": Case(learner("training", {STEP: "7x90"}), learner("training", {STEP: "0+1x90"}), 60),
    "RoundFailed": of('last_round_verdict{verdict="failed"}', "1x60", "0x60"),
    "NoReleases": of("rounds_without_release", "3x60", "2x60"),
    "PolicyDrift": of("policy_drift", "0.31x60", "0.3x60"),
    "EarlierLessonsLost": of("measured_kept_ratio", "0.8x60", "0.85x60"),
    "LearningPaused": of("learning_paused", "1x2000", "0 1x1000", 1500),
}  # fmt: skip
GROUPS = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]


def check(directory: Path, series: Series, minute: int, firing: list[str], alert: str = "") -> None:
    """Let promtool see which alerts fire then, among all or those of one name."""
    name = f',alertname="{alert}"' if alert else ""
    test = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertstate="firing"{name}}})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in firing],
            }
        ],
    }
    rules = [str(PROMETHEUS / "rules.yml")]
    file = directory / "test.yml"
    file.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "1m", "tests": [test]}))
    run(program("promtool"), "test", "rules", file)


@pytest.mark.parametrize("alert", CASES)
def test_it_fires_and_just_short_of_that_it_does_not(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    check(tmp_path, HEALTHY | case.fires, case.minute, [alert], alert)
    check(tmp_path, HEALTHY | case.quiet, case.minute, [], alert)


def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    silent: Series = {}
    for case in CASES.values():
        silent |= {name: "0x2000" for name in case.fires if "_bucket" not in name}
    silent['apprentice_log_writable{instance="a"}'] = "1x2000"
    silent['apprentice_measured_kept_ratio{instance="a"}'] = "1x2000"
    silent['apprentice_disk_free_bytes{instance="a"}'] = f"{99 * GIB}x2000"
    check(tmp_path, silent | HEALTHY, 1600, [])


def test_a_round_under_way_is_not_stuck_but_a_phase_that_never_ends_is(tmp_path: Path) -> None:
    check(tmp_path, HEALTHY | learner("publishing"), 25, [], "LearnerStuck")
    check(tmp_path, HEALTHY | learner("publishing"), 40, ["LearnerStuck"], "LearnerStuck")


def test_every_alert_is_tested_here() -> None:
    assert {rule["alert"] for rule in RULES} == set(CASES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_grave_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "rules.yml", "targets.yml"):
        (tmp_path / name).write_bytes((PROMETHEUS / name).read_bytes())
    (tmp_path / "metrics.key").write_text("a key")
    run(program("promtool"), "check", "config", tmp_path / "prometheus.yml")
