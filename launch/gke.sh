#!/usr/bin/env bash
# Trains on TPU slices or GPU nodes of a GKE cluster, as a JobSet: one job per slice, one pod per host.
#   bash launch/gke.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=/dev/null
. "$root/launch/common.sh"

usage() {
  cat <<'EOF'
bash launch/gke.sh image --image IMAGE
bash launch/gke.sh submit NAME [options] CONFIG [arguments of t2i train]
bash launch/gke.sh logs|status|delete NAME [options]

  image    build this checkout's image with docker, and push it
  submit   create the JobSet NAME; refused where there is one already
  logs     follow the log of one pod
  status   the JobSet, and its pods
  delete   delete the JobSet and its pods; one that does not exist is fine

  --image IMAGE            image, submit: where the image is (or T2I_IMAGE)
  --bucket BUCKET          submit: Cloud Storage bucket (or T2I_BUCKET), which every pod sees as folder `bucket`
  --workdir DIR            submit: folder of the run; default bucket/NAME
  --accelerator LABEL      submit: tpu-v5-lite-podslice (default), tpu-v6e-slice, tpu-v5p-slice, tpu-v4-podslice
  --topology TOPOLOGY      submit: chips of a slice, default 4x4
  --slices N               submit: default 1
  --gpu KIND               image, submit: for GPU nodes, as nvidia-h100-80gb, in place of slices
  --hosts N                submit: how many GPU nodes, default 1; a slice has its chips divided by --chips-per-host
  --chips-per-host N       submit: default 4, of GPUs 8
  --spot                   submit: nodes that may be preempted
  --service-account NAME   submit: Kubernetes account that may write the bucket, default `default`
  --max-restarts N         submit: how often a training that failed starts again, default 3
  --grace SECONDS          submit: time to save when a pod is told to stop, default 300
  --slice N, --host N      logs: which pod, default 0 and 0
  --no-follow              logs: print the log so far and end
  --namespace NAMESPACE    default `default`
  --dry-run                print the commands, run nothing
  --help

CONFIG is a recipe under configs/, as the image has it. What follows it goes to t2i train, but for the options above.
The JobSet ends with the training: status 2 ends it at once; 75 and lost nodes start it again, as often as it takes;
anything else starts it again --max-restarts times. Needs JobSet 0.10 or newer in the cluster.

  bash launch/gke.sh submit shapes --image us-docker.pkg.dev/my-project/t2i/t2i --bucket my-bucket \
    --topology 4x8 configs/imagen/shapes.py train.rules=fsdp
EOF
}

image="${T2I_IMAGE:-}" bucket="${T2I_BUCKET:-}" workdir="" namespace=default service_account=default
accelerator=tpu-v5-lite-podslice topology=4x4 chips_per_host="" slices=1 gpu="" hosts="" spot=""
max_restarts=3 grace=300 slice=0 host=0 no_follow=""
words=() # SUBCOMMAND NAME CONFIG ARGUMENTS...

check_arguments() {
  check_subcommand "image logs status delete" "submit"
  if [ "$subcommand" = image ]; then
    [ -z "$name" ] || mistake "argument='$name' is one too many for image; leave it out."
    given image "$image" "use --image, as --image us-docker.pkg.dev/my-project/t2i/t2i, or set T2I_IMAGE"
    need docker "install docker"
    return
  fi
  [[ "$name" =~ ^[a-z][-a-z0-9]{0,38}$ ]] ||
    mistake "name='$name' is not a JobSet's name; give up to 39 small letters, digits and dashes after $subcommand."
  number slice "$slice"
  number host "$host"
  [ "$subcommand" != submit ] || check_submit
  need kubectl "install kubectl, and connect it with 'gcloud container clusters get-credentials'"
}

check_submit() {
  [[ "$config" == configs/*.py && -f "$root/$config" ]] ||
    mistake "config='$config' is not a recipe under configs/ of this checkout; try configs/imagen/shapes.py."
  [[ "$image" =~ ^[A-Za-z0-9][-A-Za-z0-9._:/@]+$ ]] ||
    mistake "image='$image' is not an image's name; use --image or set T2I_IMAGE (image builds one)."
  [[ "$bucket" =~ ^[a-z0-9][-._a-z0-9]+$ ]] ||
    mistake "bucket='$bucket' is not a bucket's name; use --bucket or set T2I_BUCKET, without gs://."
  [[ "$accelerator $service_account" =~ ^[-.a-z0-9]+\ [-.a-z0-9]+$ ]] ||
    mistake "accelerator='$accelerator' or service-account='$service_account' is no name; use small letters and digits."
  number slices "$slices"
  number max-restarts "$max_restarts"
  number grace "$grace"
  if [ -n "$gpu" ]; then check_gpu; else check_slice; fi
}

check_gpu() {
  [[ "$gpu" =~ ^[a-z0-9]+(-[a-z0-9]+)*$ ]] || mistake "gpu='$gpu' is not a kind of GPU; try nvidia-h100-80gb."
  [ "$slices" = 1 ] || mistake "slices='$slices' is for TPUs; use --hosts for more GPU nodes."
  hosts="${hosts:-1}" chips_per_host="${chips_per_host:-8}"
  number hosts "$hosts"
  number chips-per-host "$chips_per_host"
  [ "$hosts" -gt 0 ] && [ "$chips_per_host" -gt 0 ] ||
    mistake "hosts='$hosts' of chips-per-host='$chips_per_host' is nothing; give at least one of both."
}

check_slice() {
  [[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || mistake "topology='$topology' is not a topology; try 4x4 or 2x2x4."
  [ -z "$hosts" ] || mistake "hosts='$hosts' is for GPUs; a slice's hosts follow from --topology."
  chips_per_host="${chips_per_host:-4}"
  number chips-per-host "$chips_per_host"
  local chips=$((${topology//x/*}))
  hosts=$((chips_per_host > 0 ? chips / chips_per_host : 0))
  [ "$hosts" -gt 0 ] && [ $((hosts * chips_per_host)) = "$chips" ] ||
    mistake "chips-per-host='$chips_per_host' does not divide the $chips chips of $topology; give what one host has."
}

# Sets `command` to the training's, as a list of YAML. Kubernetes would replace $(NAME) in it; $$ is a plain $ to it.
write_command() {
  local word
  command="t2i, train"
  for word in "${words[@]:2}" --workdir "${workdir:-bucket/$name}"; do
    [[ "$word" != *[[:cntrl:]]* ]] ||
      mistake "argument='${word%%[[:cntrl:]]*}...' has a line break or a tab; leave it out."
    command="$command, \"$(sed 's/[\\"]/\\&/g; s/\$/&&/g' <<<"$word")\""
  done
}

# What a pod needs to reach a slice's chips, or its node's GPUs and the other nodes, whose names JobSet makes.
placement() {
  if [ -z "$gpu" ]; then
    selector="{cloud.google.com/gke-tpu-accelerator: $accelerator, cloud.google.com/gke-tpu-topology: \"$topology\"$spot_node}"
    limits="google.com/tpu: $chips_per_host"
    exclusive="alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool" # a slice is one node pool
    return
  fi
  local index="metadata.annotations['batch.kubernetes.io/job-completion-index']"
  selector="{cloud.google.com/gke-accelerator: $gpu$spot_node}"
  limits="nvidia.com/gpu: $chips_per_host"
  environment="
                    - {name: LD_LIBRARY_PATH, value: /usr/local/nvidia/lib64}  # the node's driver
                    - {name: JAX_COORDINATOR_ADDRESS, value: \"$name-slice-0-0.$name:8476\"}
                    - {name: JAX_NUM_PROCESSES, value: \"$hosts\"}
                    - {name: JAX_PROCESS_ID, valueFrom: {fieldRef: {fieldPath: \"$index\"}}}"
}

# One pod that ends with 2, or that was told to stop and ended with 75, or whose node was taken, ends its job with a
# message that says so; the JobSet's rules go by it. Any other failure is the job's own, after its first failed pod.
manifest() {
  local selector limits exclusive="" environment="" spot_node="" mount="implicit-dirs,rename-dir-limit=100000"
  [ -z "$spot" ] || spot_node=', cloud.google.com/gke-spot: "true"'
  placement
  mount="$mount,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0" # see mount_bucket of tpu_worker.sh
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations: {$exclusive}
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["exit code 2 matching"]
      - name: stopped
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [2]}
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [75]}
              - action: FailJob
                onPodConditions: [{type: DisruptionTarget}]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
                gke-gcsfuse/cpu-limit: "0"  # none: a checkpoint is written as fast as the host can
                gke-gcsfuse/memory-limit: "0"
                gke-gcsfuse/ephemeral-storage-limit: "0"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
              serviceAccountName: $service_account
              nodeSelector: $selector
              containers:
                - name: train
                  image: $image
                  command: [$command]
                  env: ${environment:-[]}
                  resources: {limits: {$limits}}
                  volumeMounts:
                    - {name: bucket, mountPath: /t2i/bucket}
                    - {name: memory, mountPath: /dev/shm}
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: "$bucket"
                      mountOptions: "$mount"
                - name: memory  # processes that read data hand images over in shared memory
                  emptyDir: {medium: Memory}
EOF
}

image() {
  step "image: building $image" "read the message above" \
    docker build --platform linux/amd64 --file "$root/launch/Dockerfile" --build-arg "PLATFORM=$([ -n "$gpu" ] && echo cuda || echo tpu)" \
    --tag "$image" "$root"
  step "image: pushing $image" "check its name, and 'gcloud auth configure-docker' for its host" docker push "$image"
}

submit() {
  local command create=(kubectl create --namespace "$namespace" --filename -)
  write_command
  if [ -n "$dry_run" ]; then
    printf "%s <<'JOBSET'\n%s\nJOBSET\n" "$(quoted "${create[@]}")" "$(manifest)"
  else
    manifest | step "submit: creating the JobSet $name" "delete an older one of this name, or read the message above" \
      "${create[@]}"
  fi
}

logs() {
  local pod="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=$slice"
  pod="$pod,batch.kubernetes.io/job-completion-index=$host"
  local command=(kubectl logs --namespace "$namespace" --container train --tail=-1 --selector "$pod")
  [ -n "$no_follow" ] || command+=(--follow)
  step "logs: reading the log of slice $slice, host $host of $name" "check with status that the pod has started" \
    "${command[@]}"
}

status() {
  step "status: reading the JobSet $name" "check that it was submitted, and --namespace" \
    kubectl get jobset "$name" --namespace "$namespace"
  step "status: reading the pods of $name" "try again" \
    kubectl get pods --namespace "$namespace" --selector "jobset.sigs.k8s.io/jobset-name=$name" --output wide
}

delete() {
  step "delete: deleting the JobSet $name" "check --namespace, then delete again" \
    kubectl delete jobset "$name" --namespace "$namespace" --ignore-not-found
}

read_arguments "spot no-follow" "image bucket workdir accelerator topology slices gpu hosts chips-per-host \
service-account max-restarts grace slice host namespace" "$@"
subcommand="${words[0]:-}" name="${words[1]:-}" config="${words[2]:-}"
check_arguments
"$subcommand"
