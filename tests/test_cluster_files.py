"""The files under cluster/: versions agree with the constraints, schemas hold, safe defaults."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.kubernetes_schema import manifests, problems

REPOSITORY = Path(__file__).resolve().parents[1]
CLUSTER = REPOSITORY / "cluster"
CRDS = REPOSITORY.parent / "shared" / "schemas"
MANIFESTS = ("raycluster.yaml", "rayjob.yaml")
LAUNCHER = ("ray-up.yaml", "ray-up-on-premise.yaml")
PINS = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if "==" in line
)
PINS = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def requirements(items: list[str]) -> dict[str, str]:
    """Name -> lower bound."""
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", item) for item in items]
    assert all(found), items
    return {m[1].lower(): m[2] for m in found if m}


def load(name: str) -> dict:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_spec(name: str) -> dict:
    """The RayCluster spec of a manifest."""
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_templates(spec: dict) -> list[dict]:
    return [spec["headGroupSpec"]["template"], *(g["template"] for g in spec["workerGroupSpecs"])]


# Versions


def test_every_direct_dependency_is_pinned_at_or_above_its_lower_bound():
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for name, bound in requirements(wanted).items():
        pin = tuple(int(x) for x in re.findall(r"\d+", PINS[name])[:3])
        assert pin >= tuple(int(x) for x in bound.split(".")), name


def test_the_runtime_environment_is_every_dependency_as_the_constraints_pin_it():
    packages = dict(item.split("==") for item in load("runtime-env.yaml")["pip"]["packages"])
    pinned = {name.partition("[")[0].lower(): version for name, version in packages.items()}
    assert pinned == {name: PINS[name] for name in requirements(PROJECT["dependencies"])}


def test_the_constraints_name_no_registry():
    text = (REPOSITORY / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text and "@" not in text


def test_versions_agree_in_all_files():
    for name in MANIFESTS:
        assert cluster_spec(name)["rayVersion"] == PINS["ray"], name
    images = set()
    for path in CLUSTER.iterdir():
        images |= set(re.findall(r"causal-ray:([\d.]+\d)", path.read_text()))
    assert images == {PROJECT["version"]}
    assert "-c constraints.txt" in (CLUSTER / "Dockerfile").read_text()


# Schemas


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_files_and_refuses_a_typo(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(name)
    validate_config(prepare_config(copy.deepcopy(config)))
    config["idle_timeout_minuts"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


def test_ray_accepts_the_runtime_environment():
    from ray.runtime_env import RuntimeEnv

    assert RuntimeEnv(**load("runtime-env.yaml")).has_pip()


@pytest.fixture
def crds() -> Path:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's CRD files are not beside this checkout")
    return CRDS


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_fit_the_crds_of_kuberay(crds, name):
    for document in manifests(CLUSTER / name):
        assert problems(crds, document) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_typos_in_manifests_are_refused(crds, name):
    def spoiled(change) -> str:
        (document,) = manifests(CLUSTER / name)
        change(document["spec"].get("rayClusterSpec", document["spec"]))
        return "\n".join(problems(crds, document))

    def misspell(spec):
        worker = spec["workerGroupSpecs"][0]
        worker["maxReplica"] = worker.pop("maxReplicas")

    def not_a_string(spec):
        spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0

    def misplace(spec):
        spec["headGroupSpec"]["template"]["spec"]["containers"][0]["runAsUser"] = 1000

    def unknown_mode(spec):
        spec["authOptions"]["mode"] = "tokens"

    assert "'maxReplica' was unexpected" in spoiled(misspell)
    assert "0 is not of type 'string'" in spoiled(not_a_string)
    assert "'runAsUser' was unexpected" in spoiled(misplace)
    assert "'tokens' is not one of" in spoiled(unknown_mode)


def test_the_job_runs_on_the_cluster_that_the_other_manifest_describes():
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")


def test_the_entrypoint_of_the_job_is_a_valid_command(monkeypatch):
    """Its config and overrides are read by the code that the job runs."""
    import shlex

    from causal_core.config_file import load_config

    words = shlex.split(load("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "ray_jobs.train", "--config"]
    config = words[4].replace("/opt/causal-ray", str(REPOSITORY))
    resolved = load_config(config, words[5:])
    assert resolved.resources.gpus_per_worker == 1 and resolved.run.dir.startswith("/shared/")


# Safe defaults


def test_token_authentication_is_on_everywhere():
    for name in LAUNCHER:
        config = load(name)
        for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
            if "ray start" in command:
                assert "RAY_AUTH_MODE=token ray start" in command, name
        assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    for name in MANIFESTS:
        assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "Dockerfile").read_text()
    for path in (*CLUSTER.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")):
        text = path.read_text()
        if "ray start --head" in text:
            assert "RAY_AUTH_MODE=token" in text, path


def test_the_dashboard_of_launched_clusters_listens_on_loopback():
    for name in LAUNCHER:
        (start,) = (c for c in load(name)["head_start_ray_commands"] if "ray start" in c)
        assert "--dashboard-host=127.0.0.1" in start


def test_nothing_runs_as_root_and_nothing_may_become_root():
    assert (CLUSTER / "Dockerfile").read_text().rstrip().endswith("USER 1000:1000")
    job = load("rayjob.yaml")["spec"]
    for template in (*pod_templates(cluster_spec("raycluster.yaml")), job["submitterPodTemplate"]):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_head_trains_nothing_and_the_workers_scale_from_zero():
    spec = cluster_spec("raycluster.yaml")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # Ray drains a node for 30 s after SIGTERM; Kubernetes must not kill it before.
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 30
    assert load("ray-up.yaml")["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_every_claim_and_secret_that_pods_name_is_described():
    claims = {
        document["metadata"]["name"]
        for document in manifests(CLUSTER / "storage.yaml")
        if document["kind"] == "PersistentVolumeClaim"
    }
    readme = (CLUSTER / "README.md").read_text()
    for template in pod_templates(cluster_spec("raycluster.yaml")):
        for volume in template["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        for container in template["spec"]["containers"]:
            for source in container["envFrom"]:
                assert source["secretRef"]["name"] in readme


def test_no_file_holds_a_secret():
    for path in CLUSTER.iterdir():
        text = path.read_text()
        assert not re.search(r"(hf_|sk-|AKIA)[A-Za-z0-9]{12,}", text), path
        assert not re.search(r"RAY_AUTH_TOKEN=\S*[A-Za-z0-9]{8,}", text), path


def test_the_uploads_ignore_list_keeps_the_code_and_leaves_out_the_rest(tmp_path):
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    names = {
        "causal_core/data/reader.py": True,
        "ray_jobs/train.py": True,
        "configs/cpu.yaml": True,
        "data/train.jsonl": False,
        "runs/cpu/metrics.jsonl": False,
        "best/adapter_model.safetensors": False,
        ".git/config": False,
        ".env": False,
        "auth_token": False,
    }
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    excluded = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    for name, kept in names.items():
        path = tmp_path / name
        assert any(rule(path) for rule in excluded) is not kept, name


def test_the_dashboard_shows_metrics_that_the_program_exports():
    from ray_jobs.training.prometheus import EXPORTED, STEP

    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    shown = set(re.findall(r"ray_(causal_\w+)", json.dumps(dashboard)))
    assert shown == {STEP, *(name for name, _ in EXPORTED.values())}
