"""Every metric that an alert or a panel asks for exists, and docs/metrics.md is what the code says."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.metrics import documentation
from tests.deploy.tools import DEPLOY, PROMETHEUS, ROOT, program, run

BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
NAME = re.compile(r"\b(?:apprentice|vllm)[_:]\w+")
OF_VLLM = {
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
}


def panels(board: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for board in BOARDS:
        yield from (target["expr"] for panel in panels(board) for target in panel["targets"])


def known() -> set[str]:
    """The documented names, as they are on the wire."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    names = {name for name, type_ in rows if type_ != "histogram"}
    return names | {f"{n}_{part}" for n, t in rows if t == "histogram" for part in ("bucket", "sum", "count")}


def test_the_page_of_metrics_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == documentation(), (
        "python -m server.metrics > docs/metrics.md"
    )


def test_alerts_and_panels_ask_for_metrics_that_exist() -> None:
    asked = {name for one in expressions() for name in NAME.findall(one)}
    assert asked - known() - OF_VLLM == set()


def test_every_metric_is_shown_on_a_dashboard_or_watched() -> None:
    asked = {name.removesuffix("_bucket") for one in expressions() for name in NAME.findall(one)}
    unseen = {n for n in known() if not n.endswith(("_bucket", "_sum", "_count"))} - asked
    assert unseen == {
        "apprentice_engine_ready",  # part of `ready`
        "apprentice_last_round_end_timestamp_seconds",
        "apprentice_round_running_seconds",
        "apprentice_releases_rejected",  # the alert counts those of each server
        "apprentice_log_pending_records",  # their age says more
        "apprentice_follow_up_failures_total",
        "apprentice_disk_bytes",
    }


def test_vllms_names_are_the_installed_ones() -> None:
    found = find_spec("vllm")
    assert found is not None and found.origin is not None
    source = (Path(found.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    assert [name for name in OF_VLLM if f'"{name.removesuffix("_total")}"' not in source] == []


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_every_panel_says_what_it_shows(board: Path) -> None:
    ids = [panel["id"] for panel in json.loads(board.read_text())["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(board):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"]["uid"] == "apprentice"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["uid"] == "apprentice"


def test_prometheus_can_read_every_panels_expression(tmp_path: Path) -> None:
    rules = [
        {"record": "panel", "expr": one.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for one in expressions()
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": f"g{i}", "rules": [r]} for i, r in enumerate(rules)]}))
    run(program("promtool"), "check", "rules", file)
