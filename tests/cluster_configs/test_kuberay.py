"""The KubeRay manifests use fields that exist, start with a token, and keep dashboards to themselves."""

import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from negalign_ray.actors.cluster import Node
from tests.cluster_configs.nodes import CONFIGS, ROLES, ROOT, load_yaml, require_room_for_a_run

# Fields of the CRDs of KubeRay 1.6.2 (ray.io/v1), and of the parts of core/v1 and networking.k8s.io/v1 that are used:
# kind of object -> its fields, each with the kind of what is inside (None = not looked into, [kind] = a list of it).
FIELDS: dict[str, dict[str, Any]] = {
    "RayCluster": {"apiVersion": None, "kind": None, "metadata": "Metadata", "spec": "RayClusterSpec"},
    "RayJob": {"apiVersion": None, "kind": None, "metadata": "Metadata", "spec": "RayJobSpec"},
    "RayJobSpec": {
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "preRunningDeadlineSeconds", "clusterSelector")),
        **dict.fromkeys(("deletionStrategy", "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "managedBy")),
        **dict.fromkeys(("entrypointResources", "jobId", "metadata", "runtimeEnvYAML", "shutdownAfterJobFinishes")),
        **dict.fromkeys(("submissionMode", "submitterConfig", "submitterPodTemplate", "suspend")),
        "ttlSecondsAfterFinished": None,
        "rayClusterSpec": "RayClusterSpec",
    },
    "RayClusterSpec": {
        **dict.fromkeys(("autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "managedBy")),
        **dict.fromkeys(("headServiceAnnotations", "rayVersion", "suspend", "upgradeStrategy")),
        "authOptions": "AuthOptions",
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": dict.fromkeys(("mode", "secretName", "enableK8sTokenAuth")),
    "HeadGroupSpec": {
        **dict.fromkeys(("enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType")),
        "template": "PodTemplate",
    },
    "WorkerGroupSpec": {
        **dict.fromkeys(("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts")),
        **dict.fromkeys(("rayStartParams", "replicas", "resources", "scaleStrategy", "suspend")),
        "template": "PodTemplate",
    },
    "PodTemplate": {"metadata": "Metadata", "spec": "PodSpec"},
    "Metadata": dict.fromkeys(("name", "namespace", "labels", "annotations")),
    "PodSpec": {
        **dict.fromkeys(("automountServiceAccountToken", "nodeSelector", "tolerations", "affinity", "volumes")),
        **dict.fromkeys(("serviceAccountName", "imagePullSecrets", "terminationGracePeriodSeconds")),
        "securityContext": "PodSecurityContext",
        "containers": ["Container"],
    },
    "PodSecurityContext": dict.fromkeys(("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile")),
    "Container": {
        **dict.fromkeys(("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports")),
        **dict.fromkeys(("volumeMounts", "livenessProbe", "readinessProbe", "lifecycle")),
        "resources": "Requirements",
        "securityContext": "SecurityContext",
    },
    "Requirements": dict.fromkeys(("limits", "requests")),
    "SecurityContext": dict.fromkeys(("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem")),
    "PersistentVolumeClaim": {"apiVersion": None, "kind": None, "metadata": "Metadata", "spec": "ClaimSpec"},
    "ClaimSpec": {**dict.fromkeys(("accessModes", "storageClassName", "volumeMode")), "resources": "Requirements"},
    "NetworkPolicy": {"apiVersion": None, "kind": None, "metadata": "Metadata", "spec": "NetworkPolicySpec"},
    "NetworkPolicySpec": dict.fromkeys(("podSelector", "policyTypes", "ingress", "egress")),
}
API = {"RayCluster": "ray.io/v1", "RayJob": "ray.io/v1", "PersistentVolumeClaim": "v1"}
API["NetworkPolicy"] = "networking.k8s.io/v1"
FILES = ("kuberay_cluster.yaml", "kuberay_job.yaml", "kuberay_shared.yaml")
GIB = 1024**3


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CONFIGS / name).read_text()))


def unknown_fields(value: Any, kind: str, where: str = "") -> Iterator[str]:
    for key, inner in value.items():
        place = f"{where}.{key}".lstrip(".")
        if key not in FIELDS[kind]:
            yield place
        elif isinstance(inside := FIELDS[kind][key], str):
            yield from unknown_fields(inner, inside, place)
        elif isinstance(inside, list):
            for number, item in enumerate(inner):
                yield from unknown_fields(item, inside[0], f"{place}[{number}]")


def cluster() -> dict:
    [document] = documents("kuberay_cluster.yaml")
    return document


def specs() -> dict[str, dict]:
    [job] = documents("kuberay_job.yaml")
    return {"cluster": cluster()["spec"], "job": job["spec"]["rayClusterSpec"]}


def pod_templates(spec: dict) -> list[dict]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


each_spec = pytest.mark.parametrize("spec", specs().values(), ids=specs())


@pytest.mark.parametrize("name", FILES)
def test_every_field_exists_in_its_kind(name):
    for document in documents(name):
        assert document["apiVersion"] == API[document["kind"]]
        assert list(unknown_fields(document, document["kind"])) == []


def test_a_misspelt_field_would_be_found():
    wrong = deepcopy(cluster())
    wrong["spec"]["workerGroupSpecs"][1]["replica"] = 2
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumes"] = []
    assert list(unknown_fields(wrong, "RayCluster")) == [
        "spec.headGroupSpec.template.spec.containers[0].volumes",
        "spec.workerGroupSpecs[1].replica",
    ]


@each_spec
def test_ray_reads_the_groups_and_their_labels_as_they_are_meant(spec):
    """By the code with which Ray's autoscaler reads a custom resource, its schema included."""
    read = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "n", "namespace": "default"}, "spec": spec})
    types = read["available_node_types"]
    assert set(types) == {"headgroup", *ROLES}
    for role in ROLES:
        assert types[role]["labels"] == {"role": role}
        assert types[role]["resources"]["GPU"] == 1
    assert types["sampler"]["resources"] == {"CPU": 4, "GPU": 1, "memory": 32 * GIB}


@each_spec
def test_each_role_has_a_group_of_its_own_that_scales_by_itself(spec):
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == set(ROLES)
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


@each_spec
def test_the_groups_hold_a_run(spec):
    nodes = [Node({"CPU": 4})]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has = {"CPU": float(limits["cpu"]), "GPU": limits["nvidia.com/gpu"]}
        nodes += [Node(has, group["labels"])] * group["replicas"]
    require_room_for_a_run(nodes, roles="roles_gpu.yaml", num_samplers=2, num_learners=1)


@each_spec
def test_the_token_is_on_and_ray_is_the_version_of_the_project(spec):
    assert spec["authOptions"] == {"mode": "token"}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,train]=={spec['rayVersion']}" in dependencies


@each_spec
def test_pods_run_without_root_and_without_rights_in_the_cluster(spec):
    [user] = set(re.findall(r"^USER (\d+)$", (ROOT / "docker/Dockerfile.cuda").read_text(), re.MULTILINE))
    for template in pod_templates(spec):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user), "who owns the files of the image"
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_dashboard_of_the_cluster_is_on_loopback():
    assert specs()["cluster"]["headGroupSpec"]["rayStartParams"] == {"dashboard-host": "127.0.0.1"}


def test_the_dashboard_of_a_job_is_reached_by_the_operator_alone():
    """KubeRay polls it; on loopback, every job would be called failed half a minute after its end."""
    [job] = documents("kuberay_job.yaml")
    assert job["spec"]["submissionMode"] == "HTTPMode", "else a submitter pod would need the dashboard too"
    claim, policy = documents("kuberay_shared.yaml")
    own = {"podSelector": {"matchLabels": {"app": "negalign-ray"}}}
    assert policy["spec"]["podSelector"] == own["podSelector"]
    among_themselves, dashboard = policy["spec"]["ingress"]
    assert among_themselves == {"from": [own]}
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]
    [operator] = dashboard["from"]
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    for template in pod_templates(job["spec"]["rayClusterSpec"]):
        assert template["metadata"]["labels"] == {"app": "negalign-ray"}, "what the policy selects"
        [volume] = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_job_and_cluster_differ_in_the_dashboard_alone():
    both = specs()
    for spec in both.values():
        del spec["headGroupSpec"]["rayStartParams"]
    assert both["job"] == both["cluster"]


def test_every_group_that_a_role_is_sent_to_exists():
    for roles in ("roles.yaml", "roles_gpu.yaml"):
        wanted = {section["labels"]["role"] for section in load_yaml(CONFIGS / roles).values()}
        assert wanted == set(ROLES)
