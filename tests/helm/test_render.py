"""What the chart makes of values, and what it refuses."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ray._private.services import determine_plasma_store_config
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.config import AutoscalingConfig

from benchmarks.harness.chart import CHART, INSECURE, Chart, Refused, Rendered
from serving.deployments.cluster_app import application
from serving.deployments.local_cluster import SERVICES
from serving.deployments.scaling.by_slots import by_slots
from serving.deployments.telemetry.logging_config import LOGGING
from serving.launch.ray_environment import ENVIRONMENT
from serving.protocol.requests import APPLICATION
from tests.helm import values_schema
from tests.helm.schemas import problem_of, serve_config_of

EXAMPLES = sorted((CHART / "ci").glob("*.yaml"))
SEPARATE = (*INSECURE, "server.stages=separate", "server.decoder_slots=8")
CUDA = ("server.device=cuda", "pods.denoiser.gpus=1")


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in config["applications"][0]["deployments"]}


def test_the_schema_knows_the_settings_that_the_server_knows() -> None:
    assert values_schema.FILE.read_text() == values_schema.text()


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_is_taken_by_kubernetes_kuberay_and_serve(chart: Chart, example: Path) -> None:
    rendered = chart.render(files=[example])
    assert [problem for found in rendered.objects if (problem := problem_of(found))] == []
    config = serve_config_of(rendered.ray_service)
    assert {"SessionManager", "Denoiser"} <= set(deployments(config))


def test_an_insecure_server_can_have_operators(chart: Chart) -> None:
    rendered = chart.render(*INSECURE, "tokens.existingSecret=secret", "tokens.operatorKey=operator")
    (found,) = serve_config_of(rendered.ray_service)["applications"]
    assert found["args"]["insecure"]
    assert found["args"]["operator_token"] == "/etc/longtake/tokens/operator"
    assert "tokens" not in found["args"]
    (container,) = rendered.pod("front")["containers"]
    assert "/etc/longtake/tokens" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize("example", [None, *EXAMPLES], ids=lambda path: path.stem if path else "insecure")
def test_helm_finds_nothing_to_complain_of(chart: Chart, example: Path | None) -> None:
    values = ["--set", *INSECURE] if example is None else ["--values", str(example)]
    command = [str(chart.helm), "lint", "--strict", str(CHART), *values]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_key_in_a_pod_or_a_ray_cluster_would_be_found(chart: Chart) -> None:
    found: Any = chart.render(*INSECURE).ray_service
    found["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["conteiners"] = []
    assert "conteiners" in (problem_of(found) or "")
    found = chart.render(*INSECURE).ray_service
    found["spec"]["rayClusterConfig"]["rayversion"] = "2"
    assert "rayversion" in (problem_of(found) or "")
    found = chart.render(*INSECURE).ray_service
    found["spec"]["serveConfigV2"] = found["spec"]["serveConfigV2"].replace("num_replicas", "replicas")
    with pytest.raises(AssertionError, match="Serve knows no replicas"):
        serve_config_of(found)


@pytest.mark.parametrize(
    "values",
    [INSECURE, SEPARATE, (*INSECURE, "server.limits.sessions_per_token=4", "server.sizes[0]=160x256")],
    ids=["shared", "separate", "settings"],
)
def test_the_server_takes_the_settings_that_the_chart_gives_it(chart: Chart, values: tuple[str, ...]) -> None:
    config = serve_config_of(chart.render(*values).ray_service)
    (found,) = config["applications"]
    assert application(found["args"])._bound_deployment.name == "SessionManager"
    assert found["name"] == APPLICATION
    assert config["grpc_options"]["grpc_servicer_functions"] == SERVICES
    assert config["logging_config"] == LOGGING.model_dump(mode="json", include=set(config["logging_config"]))


def test_pods_have_the_environment_of_a_server_on_one_machine_but_that_their_ports_are_their_own(
    chart: Chart,
) -> None:
    here = {name: value for name, value in ENVIRONMENT.items() if name != "SERVE_SOCKET_REUSE_PORT_ENABLED"}
    rendered = chart.render(*SEPARATE)
    for group in rendered.groups:
        (container,) = rendered.pod(group)["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment.items() >= here.items()
        assert "SERVE_SOCKET_REUSE_PORT_ENABLED" not in environment
        assert not [name for name in environment if name.startswith("LONGTAKE_")]


def test_the_operator_is_told_the_version_of_ray_that_the_image_has(chart: Chart) -> None:
    cluster = chart.render(*INSECURE).ray_service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}


def test_each_denoiser_has_a_pod_of_its_own_and_managers_are_in_others(chart: Chart) -> None:
    rendered = chart.render(*SEPARATE, "replicas.denoisers=3", "replicas.managers=5", "recordings.create=true")
    pods = {name: group.get("replicas") for name, group in rendered.groups.items()}
    assert pods == {"front": 3, "denoiser": 3, "decoder": 1, "text": 1, "head": None}
    found = deployments(serve_config_of(rendered.ray_service))
    counts = {name: deployment["num_replicas"] for name, deployment in found.items()}
    assert counts == {"SessionManager": 5, "Denoiser": 3, "VideoDecoder": 1, "TextEncoder": 1}
    resources = {name: deployment["ray_actor_options"]["resources"] for name, deployment in found.items()}
    assert resources == {
        "SessionManager": {"front": 1}, "Denoiser": {"denoiser": 1}, "VideoDecoder": {"decoder": 1},
        "TextEncoder": {"text": 1},
    }  # fmt: skip
    for name, replicas in (("front", 2), ("denoiser", 1), ("decoder", 1), ("text", 1)):
        assert rendered.groups[name]["rayStartParams"]["resources"] == f'\'"{{\\"{name}\\": {replicas}}}"\''.strip(
            "'"
        )


def test_a_stage_on_the_cpu_takes_no_gpu(chart: Chart) -> None:
    gpus = ("server.text_device=cpu", "pods.decoder.gpus=1")
    rendered = chart.render(*SEPARATE, *CUDA, *gpus)
    found = deployments(serve_config_of(rendered.ray_service))
    asked = {name: deployment["ray_actor_options"].get("num_gpus", 0) for name, deployment in found.items()}
    assert asked == {"SessionManager": 0, "Denoiser": 1, "VideoDecoder": 1, "TextEncoder": 0}
    limits = {group: rendered.pod(group)["containers"][0]["resources"]["limits"] for group in rendered.groups}
    assert {group for group, found in limits.items() if "nvidia.com/gpu" in found} == {"denoiser", "decoder"}


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_ray_keeps_objects_in_a_pods_shared_memory(
    chart: Chart, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = chart.render(files=[example])
    for name, group in rendered.groups.items():
        volumes = {volume["name"]: volume for volume in rendered.pod(name)["volumes"]}
        shared = int(volumes["shared-memory"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
        monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda shared=shared: shared)
        store = int(group["rayStartParams"]["object-store-memory"])
        folder, _, size = determine_plasma_store_config(store, "/tmp/ray")
        assert (folder, size) == ("/dev/shm", store)


def node_types(rendered: Rendered) -> dict[str, Any]:
    """The nodes that Ray's autoscaler could start for the cluster, by its own reading of it."""
    cluster = rendered.ray_service["spec"]["rayClusterConfig"]
    resource = {"metadata": {"namespace": "here", "name": "films"}, "spec": cluster}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    return found


@pytest.mark.parametrize(
    "values",
    [SEPARATE, (*CUDA, *INSECURE), (*CUDA, *INSECURE, "gpuResource=nvidia.com/mig-1g\\.10gb")],
    ids=["separate on cpu", "gpu", "part of a gpu"],
)
def test_rays_autoscaler_has_a_pod_for_each_replica_that_serve_may_start(
    chart: Chart, values: tuple[str, ...]
) -> None:
    rendered = chart.render(*values, "autoscaling.enabled=true")
    types = node_types(rendered)
    for deployment in deployments(serve_config_of(rendered.ray_service)).values():
        asked = deployment["ray_actor_options"]
        (kind,) = asked["resources"]
        has = types[kind]["resources"]
        assert has[kind] >= 1
        assert has["CPU"] >= asked["num_cpus"]
        assert has.get("GPU", 0) >= asked.get("num_gpus", 0)
        most = deployment.get("autoscaling_config", {"max_replicas": 0})["max_replicas"]
        assert types[kind]["max_workers"] >= most
        assert types[kind]["min_workers"] == 0


def test_serve_scales_what_has_slots_by_them_and_managers_stay_as_many(chart: Chart) -> None:
    bounds = ("autoscaling.denoisers.min=2", "autoscaling.denoisers.max=6", "autoscaling.decoders.max=3")
    rendered = chart.render(*SEPARATE, "autoscaling.enabled=true", *bounds)
    found = deployments(serve_config_of(rendered.ray_service))
    assert {name: deployment["num_replicas"] for name, deployment in found.items()} == {
        "SessionManager": 1, "Denoiser": "auto", "VideoDecoder": "auto", "TextEncoder": "auto",
    }  # fmt: skip
    config = AutoscalingConfig(**found["Denoiser"]["autoscaling_config"])
    assert (config.min_replicas, config.max_replicas, config.metrics_interval_s) == (2, 6, 1)
    assert config.policy.get_policy().__name__ == by_slots.__name__
    assert AutoscalingConfig(**found["VideoDecoder"]["autoscaling_config"]).max_replicas == 3


def test_the_autoscaler_alone_may_speak_to_kubernetes(chart: Chart) -> None:
    def speaking(*values: str) -> set[str]:
        rendered = chart.render(*SEPARATE, *values)
        return {group for group in rendered.groups if rendered.pod(group)["automountServiceAccountToken"]}

    assert speaking() == set()
    assert speaking("autoscaling.enabled=true") == {"head"}


def test_secrets_are_mounted_and_in_no_config(chart: Chart) -> None:
    rendered = chart.render("tokens.existingSecret=callers", "tokens.key=list")
    config = serve_config_of(rendered.ray_service)
    args = config["applications"][0]["args"]
    assert (args["tokens"], "operator_token" in args) == ("/etc/longtake/tokens/list", False)
    for group in rendered.groups:
        volumes = {volume["name"]: volume for volume in rendered.pod(group)["volumes"]}
        assert volumes["tokens"]["secret"] == {"secretName": "callers"}


def test_operators_have_a_token_of_their_own_in_the_same_secret(chart: Chart) -> None:
    rendered = chart.render("tokens.existingSecret=callers", "tokens.operatorKey=boss")
    args = serve_config_of(rendered.ray_service)["applications"][0]["args"]
    assert args["operator_token"] == "/etc/longtake/tokens/boss"


def test_where_there_are_operators_a_cluster_follows_the_service(chart: Chart) -> None:
    rendered = chart.render("tokens.existingSecret=callers", "tokens.operatorKey=boss", release="films")
    args = serve_config_of(rendered.ray_service)["applications"][0]["args"]
    service = rendered.ray_service["spec"]["serveService"]
    (port,) = (found["port"] for found in service["spec"]["ports"] if found["name"] == "serve-grpc")
    assert (args["insecure"], args["tokens"]) == (True, "/etc/longtake/tokens/tokens")
    assert args["public_address"] == f"{service['metadata']['name']}:{port}" == "films-longtake:9000"


def test_managers_in_several_pods_share_a_volume_of_recordings(chart: Chart) -> None:
    rendered = chart.render(*INSECURE, "replicas.managers=4", "recordings.existingClaim=films")
    volumes = {volume["name"]: volume for volume in rendered.pod("front")["volumes"]}
    assert volumes["recordings"]["persistentVolumeClaim"] == {"claimName": "films"}


def test_pods_wait_for_the_weights_that_their_model_needs(chart: Chart) -> None:
    rendered = chart.render(files=[CHART / "ci" / "gpu-24gb-values.yaml"])
    for group in rendered.groups:
        (waiting,) = rendered.pod(group)["initContainers"]
        assert waiting["command"][3:] == ["longlive-1.3b-int8", "tiny"]
    (job,) = rendered.of("Job")
    pod = job["spec"]["template"]["spec"]
    assert "--with-tiny-codec" in pod["initContainers"][0]["command"]
    (quantizing,) = pod["containers"]
    assert quantizing["command"][:5] == ["longtake", "quantize", "longlive-1.3b", "--to", "int8"]
    # At 480x832 it takes 30 GB, which a card of 24 GB has not.
    assert quantizing["command"][-2:] == ["--device", "cpu"]
    assert quantizing["resources"]["requests"]["memory"] == "32Gi"
    assert "nvidia.com/gpu" not in quantizing["resources"]["limits"]


def test_weights_are_rounded_on_a_gpu_that_is_asked_for(chart: Chart) -> None:
    rendered = chart.render("weights.download.gpus=1", files=[CHART / "ci" / "gpu-24gb-values.yaml"])
    (job,) = rendered.of("Job")
    (quantizing,) = job["spec"]["template"]["spec"]["containers"]
    assert quantizing["command"][-2:] == ["--device", "cuda"]
    assert quantizing["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_other_weights_are_another_job(chart: Chart) -> None:
    def name(*values: str) -> str:
        made = ("weights.create=true", "weights.download.enabled=true", "weights.download.model=longlive-1.3b")
        (job,) = chart.render(*INSECURE, *made, *values).of("Job")
        found: str = job["metadata"]["name"]
        return found

    assert name() == name("replicas.denoisers=2")
    assert len({name(), name("weights.download.revisions[0]=a/b@c"), name("weights.download.tinyCodec=true")}) == 3


def test_the_network_is_closed_but_for_clients_metrics_and_the_operator(chart: Chart) -> None:
    rendered = chart.render(files=[CHART / "ci" / "everything-values.yaml"])
    (policy,) = rendered.of("NetworkPolicy")
    own, clients, metrics, operator = policy["spec"]["ingress"]
    assert "ports" not in own
    assert own["from"] == [{"podSelector": {"matchLabels": policy["spec"]["podSelector"]["matchLabels"]}}]
    assert [port["port"] for port in clients["ports"]] == ["serve", "serve-grpc"]
    assert [port["port"] for port in (*metrics["ports"], *operator["ports"])] == ["metrics", 8265]
    for group in rendered.groups.values():
        labels = group["template"]["metadata"]["labels"]
        assert labels.items() >= policy["spec"]["podSelector"]["matchLabels"].items()


def test_groups_are_counted_as_the_readme_counts_them(chart: Chart) -> None:
    groups = chart.render(*SEPARATE).ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["front", "denoiser", "decoder", "text"]


def test_of_each_kind_of_pod_that_serves_one_at_a_time_may_be_evicted(chart: Chart) -> None:
    rendered = chart.render(*SEPARATE, "replicas.denoisers=3", "replicas.textEncoders=2")
    left = {}
    for budget in rendered.of("PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        groups = rendered.groups.items()
        (kind,) = [name for name, found in groups if found["template"]["metadata"]["labels"].items() >= wanted]
        left[kind] = {name: bound for name, bound in budget["spec"].items() if name != "selector"}
    counts = {"front": 0, "denoiser": 2, "decoder": 0, "text": 1}
    # Another bound is none for pods of a RayCluster: it would let none be evicted, ever.
    assert left == {kind: {"minAvailable": count} for kind, count in counts.items()}


def test_under_the_autoscaler_the_pods_that_there_are_at_least_count(chart: Chart) -> None:
    rendered = chart.render(
        *INSECURE, "autoscaling.enabled=true", "autoscaling.denoisers.min=3", "autoscaling.denoisers.max=8"
    )
    budgets = {found["metadata"]["name"]: found["spec"] for found in rendered.of("PodDisruptionBudget")}
    assert budgets["longtake-denoiser"]["minAvailable"] == 2


def test_routes_lead_to_the_service_that_kuberay_makes(chart: Chart) -> None:
    rendered = chart.render(files=[CHART / "ci" / "everything-values.yaml"])
    service = rendered.ray_service["spec"]["serveService"]
    ports = {port["port"] for port in service["spec"]["ports"]}
    for route in (*rendered.of("GRPCRoute"), *rendered.of("HTTPRoute")):
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        assert backend["name"] == service["metadata"]["name"] == "films"
        assert backend["port"] in ports


REFUSED = {
    "no tokens": ((), "set tokens.existingSecret, or insecure: true"),
    "both": ((*INSECURE, "tokens.existingSecret=a"), "there are tokens, and insecure is true"),
    "a key of no Secret": ((*INSECURE, "tokens.operatorKey=a"), "tokens.existingSecret is empty: name the Secret"),
    "an unknown value": ((*INSECURE, "replica.denoisers=2"), "'replica' not allowed"),
    "an unknown setting": ((*INSECURE, "server.slotz=2"), "'/server': additional properties 'slotz' not allowed"),
    "an unknown limit": ((*INSECURE, "server.limits.pixel=2"), "additional properties 'pixel' not allowed"),
    "replicas among the settings": ((*INSECURE, "server.denoisers=2"), "'denoisers' not allowed"),
    "a port among the settings": ((*INSECURE, "server.grpc_port=1"), "'grpc_port' not allowed"),
    "a wrong type": ((*INSECURE, "replicas.denoisers=many"), "at '/replicas/denoisers': got string, want integer"),
    "no replicas": ((*INSECURE, "replicas.denoisers=0"), "at '/replicas/denoisers': minimum: got 0, want 1"),
    "no gpus": ((*INSECURE, "server.device=cuda"), "the device is cuda and pods.denoiser.gpus is 0"),
    "idle gpus": ((*INSECURE, "pods.denoiser.gpus=1"), "pods.denoiser.gpus is 1 and the device is cpu"),
    "no gpus for text": ((*SEPARATE, *CUDA, "pods.decoder.gpus=1"), "pods.text.gpus is 0"),
    "little shared memory": (
        (*INSECURE, "pods.front.sharedMemory=64Mi"), "pods.front.sharedMemory is 64Mi, three quarters of which",
    ),
    "no decoder slots": ((*INSECURE, "server.stages=separate"), "server.decoder_slots is missing"),
    "no weights": ((*INSECURE, "server.model=longlive-1.3b"), "the model longlive-1.3b needs weights"),
    "no model to download": (
        (*INSECURE, "weights.create=true", "weights.download.enabled=true"), "weights.download.model is empty",
    ),
    "nowhere to download to": (
        (*INSECURE, "weights.download.enabled=true", "weights.download.model=a"), "there is no volume for them",
    ),
    "recordings apart": ((*INSECURE, "replicas.managers=3"), "3 managers are in 2 pods"),
    "both copies at once": ((*INSECURE, "shutdown.managerSeconds=80"), "shutdown.managerSeconds is 80"),
    "a node that leaves too soon": ((*INSECURE, "shutdown.drainSeconds=100"), "shutdown.drainSeconds is 100"),
    "a pod killed too soon": ((*INSECURE, "shutdown.podSeconds=250"), "shutdown.podSeconds is 250"),
    "a count beside bounds": (
        (*INSECURE, "autoscaling.enabled=true", "replicas.denoisers=3"),
        "replicas.denoisers is 3, and autoscaling is enabled: set autoscaling.denoisers.min",
    ),
    "bounds that exclude each other": (
        (*INSECURE, "autoscaling.denoisers.min=5"), "autoscaling.denoisers.min is 5, more than the 4",
    ),
    "decoders for too few": (
        (*SEPARATE, "autoscaling.enabled=true", "autoscaling.denoisers.max=9"),
        "denoisers may come to have 18 sessions, and decoders 16",
    ),
    "pods that go too soon": ((*INSECURE, "autoscaling.idlePodSeconds=60"), "minimum: got 60, want 120"),
    "no bound": ((*INSECURE, "autoscaling.denoisers.most=2"), "'most' not allowed"),
    "routes from nowhere": ((*INSECURE, "routes.enabled=true"), "routes.parentRefs is empty"),
    "a long name": ((*INSECURE, f"fullnameOverride={'a' * 48}"), "has 48 characters; KubeRay takes 47 at most"),
    "a name that begins with a digit": ((*INSECURE, "fullnameOverride=1a"), "has to begin with a letter"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(chart: Chart) -> dict[str, str]:
    """What is said of each."""
    said: dict[str, str] = {}
    for name, (values, _) in REFUSED.items():
        with pytest.raises(Refused) as refused:
            chart.render(*values)
        said[name] = str(refused.value)
    return said


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(refusals: dict[str, str], name: str) -> None:
    assert REFUSED[name][1] in refusals[name]


def test_every_refusal_of_the_templates_has_a_test(refusals: dict[str, str]) -> None:
    text = "".join(file.read_text() for file in sorted((CHART / "templates").iterdir()))
    templates = re.findall(r'{{- fail \(?(?:printf )?"((?:[^"\\]|\\.)*)"', text)
    assert len(templates) == text.count("{{- fail ")
    for template in templates:
        words = ".*".join(map(re.escape, re.split(r"%[qsd]", template)))
        assert any(re.search(words, said) for said in refusals.values()), template
