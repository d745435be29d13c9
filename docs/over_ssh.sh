#!/bin/bash
# Starts the processes of a stage on several hosts over ssh. In params.yaml, for 8 processes on each of two hosts:
#
#   launcher: bash docs/over_ssh.sh 8 first-host second-host
#
# The first host is the one on which `dvc repro` runs. The hosts need the repository, its data and the environment under
# the same paths, and the first needs ssh to the others without a password. If a host fails, or this script is ended or
# killed, the processes on all hosts end.

port=${MASTER_PORT:-29500} # of the first host
options=(-o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=10 -o ServerAliveCountMax=3)
num_processes=$1 hosts=()
shift
while [[ $# != 0 && $1 != -m ]]; do hosts+=("$1") && shift; done
if [[ ! $num_processes =~ ^[1-9][0-9]*$ || ${#hosts[@]} == 0 || $# == 0 ]]; then
    echo "usage: bash docs/over_ssh.sh PROCESSES_PER_HOST HOST... -m MODULE ARGUMENT..." >&2
    exit 2
fi

# What each host runs. torchrun is ended when the input ends, and killed if it does not heed that.
command_of() {
    local rank=$1 settings torchrun
    shift
    mapfile -t settings < <(env | grep -E '^((OMP|GLOO|NCCL|(PY)?TORCH|CUDA|CUBLAS|QUIET|FI_|UCX_)[A-Z0-9_]*|DVC_ROOT)=')
    printf -v torchrun '%q ' env "${settings[@]}" "$(command -v python)" -m torch.distributed.run \
        --nnodes "${#hosts[@]}" --node-rank "$rank" --nproc-per-node "$num_processes" --log-dir /dev/null \
        --master-addr "${hosts[0]}" --master-port "$port" "$@"
    printf 'cd %q || exit; exec 5<&0; %s </dev/null 5<&- & torchrun=$!; ' "$PWD" "$torchrun"
    printf '(read -r _; kill $torchrun; sleep 60; kill -9 $torchrun) <&5 >/dev/null 2>&1 & guard=$!; '
    printf 'exec 5<&-; wait $torchrun; code=$?; kill $guard; exit $code'
}

# The input of all hosts is a pipe whose other end is open in this shell alone, so it ends with this shell.
folder=$(mktemp -d) && mkfifo "$folder/pipe" && exec 3<>"$folder/pipe" 4<"$folder/pipe" && rm -r "$folder" || exit
trap 'exec 3>&-; wait' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
bash -c "$(command_of 0 "$@")" <&4 3>&- 4<&- &
for rank in $(seq 1 $((${#hosts[@]} - 1))); do
    ssh "${options[@]}" "${hosts[rank]}" "$(command_of "$rank" "$@")" <&4 3>&- 4<&- &
done
exec 4<&-
for _ in "${hosts[@]}"; do
    wait -n || exit
done
