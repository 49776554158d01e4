"""packaging/kubernetes.yaml is valid by Kubernetes' own schemas, and matches the image."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml
from support.installation import ROOT

from smtpd_fork.cli.command import command
from smtpd_fork.cli.metrics_listener import wanted_metrics
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig
from smtpd_fork.listeners import ANY, parse_address
from smtpd_fork.version import __version__

MANIFEST = ROOT / "packaging/kubernetes.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""Versions of Kubernetes; the schemas are in the package, so nothing is downloaded."""

TEXT = MANIFEST.read_text()
BEHIND_PROXY = re.sub(r"# (- \{name: SMTPD_FORK_\w+|annotations:|  [\w./-]+: \")", r"\1", TEXT)
"""The manifest as its comments describe it for a load balancer that sends PROXY headers."""


def documents(text: str = TEXT) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def container(text: str = TEXT) -> dict[str, Any]:
    (found,) = documents(text)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def config(text: str, monkeypatch: pytest.MonkeyPatch) -> DaemonConfig:
    variables = {str(option.envvar) for option in OPTIONS}
    for each in container(text)["env"]:
        assert each["name"] in variables
        monkeypatch.setenv(each["name"], each["value"])
    params = command.make_context("smtpd-fork", []).params
    return DaemonConfig.build({k: v for k, v in params.items() if v not in (None, ())})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("text", [TEXT, BEHIND_PROXY], ids=["direct", "behind a proxy"])
def test_every_document_is_valid_by_the_schemas(text: str, version: str) -> None:
    found = documents(text)
    assert set(found) == {"PersistentVolumeClaim", "Deployment", "Service"}
    for document in found.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_finds_a_misspelt_key() -> None:
    wrong = documents(TEXT.replace("readinessProbe", "readynessProbe"))["Deployment"]
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_settings_are_valid_and_leave_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(TEXT, monkeypatch)
    pod = documents()["Deployment"]["spec"]["template"]["spec"]
    (_, seconds) = container()["lifecycle"]["preStop"]["exec"]["command"]
    grace = pod["terminationGracePeriodSeconds"]
    assert settings.shutdown_timeout + float(seconds) < grace
    metrics = wanted_metrics(settings)
    assert metrics is not None
    assert metrics.host == ANY, "the kubelet is not on the pod's loopback"
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"smtp": 2525, "metrics": metrics.port}


def test_behind_a_proxy_the_listener_is_the_same_port_and_trusts_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(BEHIND_PROXY, monkeypatch)
    (address,) = map(parse_address, settings.listen)
    assert (address.proxy, address.host, address.port) == (True, ANY, 2525)
    assert settings.proxy_trust
    assert len(documents(BEHIND_PROXY)["Service"]["metadata"]["annotations"]) == 3


def test_no_variable_of_a_service_is_taken_for_an_option() -> None:
    found = documents()
    assert found["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False
    assert found["Service"]["metadata"]["name"] != "smtpd-fork"


def test_the_service_and_the_volume_lead_to_the_container() -> None:
    found = documents()
    template = found["Deployment"]["spec"]["template"]
    assert found["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == {"smtp"}
    (mount,) = container()["volumeMounts"]
    assert f"VOLUME {mount['mountPath']}\n" in DOCKERFILE
    (volume,) = template["spec"]["volumes"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == (found["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert volume["name"] == mount["name"]


def test_the_user_and_the_version_are_the_image_s() -> None:
    security = documents()["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in DOCKERFILE
    assert security["fsGroup"] == security["runAsGroup"]
    assert container()["image"].endswith(f":{__version__}")
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE
