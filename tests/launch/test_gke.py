"""launch/gke.sh: the JobSet it writes, the life of a job, a failure in each step."""

import pytest
import yaml

from t2i_jax.cluster import environment

_CONFIG = "configs/imagen/shapes.py"
_SUBMIT = ("submit", "run", "--image", "host/project/image:1", "--bucket", "a-bucket", _CONFIG)


def _jobset(stand_ins, *arguments):
    """The JobSet that kubectl was given, and its job and pod."""
    stand_ins.start("gke", *_SUBMIT, *arguments)
    jobset = yaml.safe_load((stand_ins.folder / "jobset.yaml").read_text())
    [job] = jobset["spec"]["replicatedJobs"]
    return jobset, job, job["template"]["spec"]["template"]


def test_the_full_life_of_a_job(stand_ins):
    stand_ins.start("gke", "image", "--image", "host/project/image:1")
    assert [call[1] for call in stand_ins.calls("docker")] == ["build", "push"]
    build = stand_ins.calls("docker")[0]  # also where this machine is of another kind
    assert "PLATFORM=tpu" in build and build[build.index("--platform") + 1] == "linux/amd64"
    stand_ins.start("gke", *_SUBMIT)
    said = stand_ins.refused("gke", *_SUBMIT, status=1)  # never a second one beside it
    assert "submit: creating the JobSet run failed with status 1; delete an older one" in said
    assert stand_ins.start("gke", "logs", "run", "--no-follow").stdout == "a line of the log\n"
    stand_ins.start("gke", "logs", "run", "--slice", "1", "--host", "3")
    assert [call.count("--follow") for call in stand_ins.calls("kubectl") if call[1] == "logs"] == [
        0,
        1,
    ]
    assert stand_ins.calls("kubectl")[-1][-2].endswith(
        "job-index=1,batch.kubernetes.io/job-completion-index=3"
    )
    stand_ins.start("gke", "status", "run")
    stand_ins.start("gke", "delete", "run")
    stand_ins.start("gke", "delete", "run")
    assert {call[-1] for call in stand_ins.calls("kubectl") if call[1] == "delete"} == {
        "--ignore-not-found"
    }


def test_a_job_per_slice_and_a_pod_per_host(stand_ins):
    jobset, job, pod = _jobset(
        stand_ins, "--slices", "2", "--topology", "4x8", "--accelerator", "tpu-v6e-slice"
    )
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "run" and job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (8, 8, "Indexed")
    assert pod["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    [container] = pod["spec"]["containers"]
    assert (
        container["resources"]["limits"] == {"google.com/tpu": 4}
        and container["image"] == "host/project/image:1"
    )
    assert container["command"] == ["t2i", "train", _CONFIG, "--workdir", "bucket/run"]


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("4x4", 4, 4), ("2x2", 4, 1), ("2x4", 8, 1), ("2x2x4", 4, 4), ("16x16", 4, 64)],
)
def test_the_hosts_of_a_topology(stand_ins, topology, chips, hosts):
    _, job, pod = _jobset(stand_ins, "--topology", topology, "--chips-per-host", chips)
    assert job["template"]["spec"]["parallelism"] == hosts
    assert pod["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_gpu_nodes_find_each_other(stand_ins, monkeypatch):
    jobset, job, pod = _jobset(stand_ins, "--gpu", "nvidia-h100-80gb", "--hosts", "3", "--spot")
    assert not jobset["metadata"]["annotations"]
    spec, [container] = job["template"]["spec"], pod["spec"]["containers"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (1, 3, 3)
    kind = {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["spec"]["nodeSelector"] == kind
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    variables = {entry["name"]: entry for entry in container["env"]}
    field = variables.pop("JAX_PROCESS_ID")["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    for name, entry in variables.items():
        monkeypatch.setenv(name, entry["value"])
    monkeypatch.setenv("JAX_PROCESS_ID", "2")  # as Kubernetes fills it in for the third pod
    found = environment.detect()
    assert (found["coordinator_address"], found["num_processes"], found["process_id"]) == (
        "run-slice-0-0.run:8476",
        3,
        2,
    )

    stand_ins.start("gke", "image", "--image", "i/i", "--gpu", "nvidia-h100-80gb")
    assert "PLATFORM=cuda" in stand_ins.calls("docker")[0]


def test_the_bucket_is_a_folder_of_every_pod(stand_ins):
    _, _, pod = _jobset(
        stand_ins, "--service-account", "trainer", "--spot", "--workdir", "bucket/a place"
    )
    assert pod["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert pod["spec"]["serviceAccountName"] == "trainer"
    assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    csi = volumes["bucket"]["csi"]
    assert (
        csi["driver"] == "gcsfuse.csi.storage.gke.io"
        and csi["volumeAttributes"]["bucketName"] == "a-bucket"
    )
    options = csi["volumeAttributes"]["mountOptions"].split(",")
    assert {"implicit-dirs", "rename-dir-limit=100000", "metadata-cache:ttl-secs:0"} <= set(options)
    [container] = pod["spec"]["containers"]
    assert {"name": "bucket", "mountPath": "/t2i/bucket"} in container["volumeMounts"]
    assert container["command"][-1] == "bucket/a place"


def test_what_starts_again_and_what_does_not(stand_ins):
    jobset, job, pod = _jobset(stand_ins, "--max-restarts", "7", "--grace", "600")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    mistake, stopped = policy["rules"]
    assert mistake["action"] == "FailJobSet" and mistake["onJobFailureMessagePatterns"] == [
        "exit code 2 matching"
    ]
    assert stopped["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert mistake["onJobFailureReasons"] == stopped["onJobFailureReasons"] == ["PodFailurePolicy"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0 and pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 600
    two, saved, taken = spec["podFailurePolicy"]["rules"]
    assert (two["onExitCodes"]["values"], saved["onExitCodes"]["values"]) == ([2], [75])
    assert taken["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert {rule["action"] for rule in (two, saved, taken)} == {"FailJob"}
    [container] = pod["spec"]["containers"]
    assert (
        two["onExitCodes"]["containerName"]
        == saved["onExitCodes"]["containerName"]
        == container["name"]
    )


_ODD = (
    "train.mesh={'data': 2}",
    'name="two  words": # {}',
    "path=C:\\new",
    "$(HOME) $HOME",
    "--mesh",
    "a=2",
    "true",
)


def test_arguments_arrive_as_they_were_given(stand_ins):
    _, _, pod = _jobset(stand_ins, *_ODD)
    # as Kubernetes reads it
    words = [word.replace("$$", "$") for word in pod["spec"]["containers"][0]["command"]]
    assert words == ["t2i", "train", _CONFIG, *_ODD, "--workdir", "bucket/run"]
    assert "has a line break or a tab" in stand_ins.refused("gke", *_SUBMIT, "a=b\nc")


def test_a_dry_run_prints_the_jobset_and_can_be_pasted(stand_ins):
    printed = stand_ins.start("gke", *_SUBMIT, *_ODD, "--namespace", "people", "--dry-run").stdout
    assert not stand_ins.calls("kubectl")
    stand_ins.start("gke", text=printed)
    pasted, calls = (stand_ins.folder / "jobset.yaml").read_text(), stand_ins.calls("kubectl")
    (stand_ins.folder / "jobset.yaml").unlink()
    stand_ins.forget()
    stand_ins.start("gke", *_SUBMIT, *_ODD, "--namespace", "people")
    assert (stand_ins.folder / "jobset.yaml").read_text() == pasted and stand_ins.calls(
        "kubectl"
    ) == calls


@pytest.mark.parametrize(
    ("words", "broken", "step"),
    [
        ("image --image i/i", "docker build", "image: building i/i failed with status 3"),
        ("image --image i/i", "docker push", "image: pushing i/i failed with status 3"),
        (
            " ".join(_SUBMIT),
            "kubectl create",
            "submit: creating the JobSet run failed with status 3",
        ),
        (
            "logs run",
            "kubectl logs",
            "logs: reading the log of slice 0, host 0 of run failed with status 3",
        ),
        ("status run", "get jobset", "status: reading the JobSet run failed with status 3"),
        ("status run", "get pods", "status: reading the pods of run failed with status 3"),
        ("delete run", "kubectl delete", "delete: deleting the JobSet run failed with status 3"),
    ],
)
def test_a_step_that_fails_is_named_and_nothing_follows_it(stand_ins, words, broken, step):
    if "status" in words:
        stand_ins.start("gke", *_SUBMIT)
    stand_ins.fail((broken, 9))
    assert step in stand_ins.refused("gke", *words.split(), status=1)
    assert broken in " ".join(stand_ins.calls("kubectl", "docker")[-1])


def test_the_image_has_what_the_command_needs():
    """The Dockerfile copies what a run needs, and nothing else reaches it."""
    from tests.launch.stand_ins import ROOT

    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    allowed = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied) and "WORKDIR /t2i" in lines
