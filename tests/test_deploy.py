"""The files in deploy/ name what Penstock has: options, routes, configurations, versions."""

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

import penstock.serve
from penstock.cli.commands import cli
from penstock.serve.config.serving_args import LLMServingArgs

DEPLOY = Path(__file__).parents[1] / "deploy"


def objects(file):
    return list(yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8")))


@pytest.fixture
def kinds():
    return {found["kind"]: found for found in objects("kubernetes.yaml")}


def container(workload):
    return workload["spec"]["template"]["spec"]["containers"][0]


def parsed(args):
    """The arguments of a container, as the command line reads them."""
    name, *rest = args
    command = cli.commands[name]
    return command.make_context(name, list(rest), resilient_parsing=False).params


def test_the_server_starts_with_these_arguments(kinds, tmp_path):
    models = kinds["ConfigMap"]["data"]["models.yaml"]
    config = tmp_path / "models.yaml"
    config.write_text(models)
    args = [
        str(config) if arg.endswith("models.yaml") else arg
        for arg in container(kinds["Deployment"])["args"]
    ]
    assert parsed(args)["host"] == "0.0.0.0"
    assert LLMServingArgs.from_dict(yaml.safe_load(models)).llm_configs


def test_a_pod_may_drain(kinds):
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    drain = parsed(container(kinds["Deployment"])["args"])["drain_timeout_s"]
    assert drain < pod["terminationGracePeriodSeconds"]


def test_nothing_has_privileges(kinds):
    for workload in (kinds["Deployment"], *objects("job.yaml")):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        security = container(workload)["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]


def test_the_job_is_a_command():
    (job,) = objects("job.yaml")
    assert parsed(container(job)["args"])["prompt"] == "{ticket}"


def test_the_ray_service_is_read():
    (service,) = objects("rayservice.yaml")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert module == "penstock.serve"
    assert callable(getattr(penstock.serve, name))
    assert LLMServingArgs.from_dict(application["args"]).llm_configs
    pins = (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={service['spec']['rayClusterConfig']['rayVersion']}\n" in pins


def test_the_image_has_no_root_and_looks_after_itself():
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001$", image, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", image, re.MULTILINE)
    assert "/health" in image
    assert " wget " in image  # KubeRay's probes
