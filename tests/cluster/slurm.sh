#!/usr/bin/env bash
# Runs examples/cluster/slurm.sbatch, as it is, on a real Slurm: a controller and two nodes on this machine. One task is
# cancelled and submitted again, a node goes down while it works, then the shares are joined and compared with what one
# process makes. Needs root, and Debian's packages slurm-wlm and munge, which it installs where apt-get can.
#
#   tests/cluster/slurm.sh [REQUANT [TEST-HUB]]
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
export REQUANT=${1:-$here/target/release/requant}
hub=${2:-$here/target/release/test-hub}
script=$here/examples/cluster/slurm.sbatch

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    install() { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; }
    if [[ $(id -u) != 0 ]] || ! install >/dev/null 2>&1; then
        echo "no Slurm here, and it cannot be installed: skipped"
        exit 0
    fi
fi

work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# Keys, ports and states of our own, so that a Slurm that runs here already is left alone.
dd if=/dev/urandom of="$work/key" bs=1024 count=1 status=none
chmod 400 "$work/key"
chmod 755 "$work"
munged --foreground --force --key-file="$work/key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munge.seed" 2>>"$work/munged.err" &
pids+=($!)
host=$(hostname -s)
mkdir "$work/state" "$work/log"
export SLURM_CONF=$work/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=requant
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/slurmd-%n
SlurmctldPort=17001
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=1
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17011-17012] CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
for _ in $(seq 50); do [[ -S $work/munge.socket ]] && break; sleep 0.1; done
slurmctld -D 2>>"$work/log/slurmctld.err" &
pids+=($!)
for node in n1 n2; do
    slurmd -D -N "$node" 2>>"$work/log/$node.err" &
    pids+=($!)
done
until_true() { # SECONDS COMMAND...
    local left=$(($1 * 5)); shift
    until "$@" 2>/dev/null; do
        ((left-- > 0)) || { echo "waited in vain for: $*"; tail -n 20 "$work"/log/* "$work"/*.log 2>/dev/null; exit 1; }
        sleep 0.2
    done
}
nodes_idle() { [[ $(sinfo -h -t idle -o %D) == 2 ]]; }
# A machine may not let its daemons do their work (no raw sockets, no hostname of its own): that is none of ours.
if ! (until_true 60 nodes_idle >/dev/null); then
    tail -n 5 "$work"/log/* "$work"/*.log 2>/dev/null || true
    echo "Slurm is installed and does not start on this machine: skipped"
    exit 0
fi

# A hub so slow that there is time to do harm.
"$hub" serve "$here/fixtures/tiny-deepseek-v3" --id org/tiny-deepseek-v3 --rate 400000 >"$work/hub" &
pids+=($!)
until_true 20 grep -q listening "$work/hub"
export HF_ENDPOINT HF_HOME=$work/home SHARES=4
HF_ENDPOINT=$(sed 's/listening on //' "$work/hub")
cd "$work"
model=org/tiny-deepseek-v3 format=q4_k_m
runs_on() { [[ $(squeue -h -t running -w "$1" -o %i | wc -l) -gt 0 ]]; }
is_running() { [[ $(squeue -h -j "$1" -t running -o %i 2>/dev/null | wc -l) -gt 0 ]]; }
is_gone() { [[ -z $(squeue -h -j "$1" 2>/dev/null) ]]; }

id=$(sbatch --parsable --array=0-3 "$script" $model $format "$work/m.gguf")
until_true 60 is_running "${id}_2"
until_true 60 test -e "$work/m.gguf.shares/3-of-4.journal"
scancel "${id}_2"
echo "task 2 of array $id is cancelled"
until_true 60 runs_on n2
scontrol update nodename=n2 state=down reason=test
echo "node n2 is down"
sleep 2
# Unless it has come back by itself.
scontrol update nodename=n2 state=resume 2>/dev/null || true
again=$(sbatch --parsable --array=2 "$script" $model $format "$work/m.gguf")
until_true 180 is_gone "$again"
until_true 180 is_gone "$id"
"$REQUANT" status "$work/m.gguf"
join=$(sbatch --parsable --dependency="afterok:$again" "$script" $model $format "$work/m.gguf")
until_true 60 is_gone "$join"
[[ -f $work/m.gguf ]] || { cat "$work"/requant-*.log; exit 1; }

"$REQUANT" convert "$here/fixtures/tiny-deepseek-v3" --to $format -o "$work/one.gguf" --job 1/1 -q >/dev/null
one=$(sha256sum <"$work/one.gguf") joined=$(sha256sum <"$work/m.gguf")
[[ $one == "$joined" ]] || { echo "different bytes: $one $joined"; exit 1; }
"$REQUANT" verify "$work/m.gguf"
grep -h 'this is share\|is done\|joined' "$work"/requant-*.log || true
echo "the same bytes as one process: ${one%% *}"
