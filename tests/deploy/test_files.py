"""Each file that deploys something: a program that knows its format looks at it, and it fits the code."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from buffer.config import BufferConfig, Shared, load
from buffer.view import Keys as Logged
from learner.config import LearnerConfig
from server.config import EngineConfig, ServerConfig
from server.engine import vllm_args
from server.identity import Keys
from tests.deploy.tools import DEPLOY, ROOT, module, program, run

COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("[!k]*.yaml"))
KUBERNETES = "1.33"
PINNED = re.compile(r"(?:apprentice|[\w./-]+):v?\d+\.\d+[\w.$:{}-]*")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def check_settings(env: dict[str, str], file: Path) -> None:
    """All tables can be read. Raises `ConfigError`."""
    load(Shared, env=env, file=file)
    load(ServerConfig, "server", env=env, file=file)
    load(EngineConfig, "engine", env=env, file=file)
    load(BufferConfig, "buffer", env=env, file=file)
    load(LearnerConfig, "learner", env=env, file=file)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deploy") / "secrets"
    run("bash", DEPLOY / "secrets.sh", directory)
    return directory


def variables(secrets: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (secrets / "apprentice.env").read_text().splitlines())


# --- the secrets -----------------------------------------------------------------------------------------


def test_the_keys_that_are_made_open_the_server(secrets: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "apprentice.toml").touch()
    config = load(ServerConfig, "server", file=empty, env=variables(secrets))
    keys = Keys.of(config, Logged())
    for name, admin in (("admin", True), ("metrics", False)):
        caller = keys.principal((secrets / f"{name}.key").read_text())
        assert caller is not None
        assert (caller.name, caller.admin) == (name, admin)


def test_secrets_are_made_once_and_nobody_else_reads_them(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o077 == 0
    before = variables(secrets)
    with pytest.raises(AssertionError, match="is there already"):
        run("bash", DEPLOY / "secrets.sh", secrets)
    assert variables(secrets) == before


# --- Docker ----------------------------------------------------------------------------------------------


def test_the_image_has_a_pinned_base_a_user_of_its_own_and_a_health_check() -> None:
    image = DockerfileParser(str(DEPLOY / "Dockerfile"))
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image.baseimage)
    last = {step["instruction"]: step["value"] for step in image.structure}
    assert last["USER"] == "10001:10001"
    assert "/healthz" in last["HEALTHCHECK"]
    assert last["CMD"] == '["apprentice", "serve"]'


def test_the_image_is_made_of_files_that_are_there_and_not_ignored() -> None:
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        source
        for step in DockerfileParser(str(DEPLOY / "Dockerfile")).structure
        if step["instruction"] == "COPY"
        for source in step["value"].split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept


def test_the_image_makes_room_for_every_package_before_its_code_comes() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = re.search(r"mkdir -p ((?:[\w/]+ )+)", (DEPLOY / "Dockerfile").read_text())
    assert found is not None
    made = {str(path) for one in found[1].split() for path in (Path(one), *Path(one).parents)}
    assert {package.replace(".", "/") for package in packages} - made == set()


# --- compose ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_the_compose_file_is_one(path: Path) -> None:
    run(*module("check_jsonschema"), "--builtin-schema", "vendor.compose-spec", path)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_every_image_has_a_version_and_every_mounted_file_is_there(path: Path) -> None:
    for name, service in documents(path)[0]["services"].items():
        if "image" in service:
            assert PINNED.fullmatch(service["image"]), name
        for source in [v.partition(":")[0] for v in service.get("volumes", [])]:
            assert not source.startswith("./") or "/secrets/" in source or (DEPLOY / source).exists(), source


def test_the_server_of_compose_understands_its_settings(secrets: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "apprentice.toml").touch()
    shared = documents(DEPLOY / "compose.yaml")[0]["x-apprentice"]["environment"]
    for path in COMPOSE:
        own = documents(path)[0]["services"]["gateway"]["environment"]
        check_settings({**shared, **own, **variables(secrets)}, empty)


def test_only_the_gateway_and_grafana_can_be_reached_and_from_this_machine_alone() -> None:
    open_ = {
        name: service["ports"]
        for path in COMPOSE
        for name, service in documents(path)[0]["services"].items()
        if "ports" in service
    }
    assert open_ == {"gateway": ["127.0.0.1:8600:8600"], "grafana": ["127.0.0.1:3000:3000"]}


def test_an_attached_vllm_gets_what_the_gateway_would_start_its_own_with() -> None:
    vllm = documents(DEPLOY / "compose.vllm.yaml")[0]["services"]["vllm"]
    socket = Path("v.sock")
    own = vllm_args.arguments(EngineConfig(), model=Path("m"), alias="apprentice", socket=socket, cpu=False)
    theirs = [part for argument in vllm["command"] for part in argument.split("=", 1)]
    flags = theirs[theirs.index("--served-model-name") :]
    assert own[own.index("--served-model-name") :] == flags
    env = vllm_args.environment(EngineConfig(), inherited={}, threads=None)
    assert vllm["environment"] == {k: v for k, v in env.items() if k != "PYTHONUNBUFFERED"}


# --- Kubernetes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_manifest_fits_kubernetes_schema(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kustomize_knows_every_manifest_but_the_secrets_template() -> None:
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert {path.name for path in MANIFESTS} - set(kustomization["resources"]) == {"secret.example.yaml"}
    assert {image["name"] for image in kustomization["images"]} == {"apprentice"}


def test_pods_have_what_the_restricted_standard_wants_and_no_variables_of_services() -> None:
    sets = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "StatefulSet"]
    assert len(sets) == 2
    for one in sets:
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        mounts = {volume["name"] for volume in pod["volumes"]} | {"state"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounts


def test_the_configuration_in_the_cluster_can_be_read(secrets: Path, tmp_path: Path) -> None:
    (config,) = documents(DEPLOY / "kubernetes" / "config.yaml")
    (file := tmp_path / "apprentice.toml").write_text(config["data"]["apprentice.toml"])
    check_settings(variables(secrets), file)


def test_the_secrets_template_has_the_names_of_the_secrets_that_are_made(secrets: Path) -> None:
    (template,) = documents(DEPLOY / "kubernetes" / "secret.example.yaml")
    assert template["stringData"].keys() == variables(secrets).keys()


def test_the_gateway_is_the_only_door_of_the_namespace() -> None:
    closed, gateway = documents(DEPLOY / "kubernetes" / "network.yaml")
    assert (closed["spec"]["podSelector"], closed["spec"].get("ingress")) == ({}, None)
    assert gateway["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert gateway["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8600}]}]


# --- systemd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    installed = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    (here := tmp_path / unit.name).write_text(installed)  # it must name a program that is there
    warnings = [line for line in run(analyze, "verify", "--man=no", here).splitlines() if unit.name in line]
    assert warnings == []
    run(analyze, "security", "--offline=true", "--threshold=30", here)


def test_there_is_a_unit_for_each_process() -> None:
    starts = [re.findall(r"^ExecStart=/opt/apprentice/.venv/bin/(.+)", u.read_text(), re.M)[0] for u in UNITS]
    assert sorted(starts) == ["apprentice learn", "apprentice serve", "python -P -m buffer"]


def test_scripts_are_programs() -> None:
    for name in ("install.sh", "secrets.sh"):
        assert os.access(DEPLOY / name, os.X_OK)
        run("bash", "-n", DEPLOY / name)
