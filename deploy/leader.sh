#!/bin/bash
# The first Pod of several: waits until the others take connections, then runs mpirun over all of them.
# LWS_LEADER_ADDRESS and LWS_GROUP_SIZE are LeaderWorkerSet's; NODE_RANKS is how many ranks a Pod has.
set -euo pipefail
leader=${LWS_LEADER_ADDRESS%%.*} domain=${LWS_LEADER_ADDRESS#*.}
port=${SSH_PORT:-2222} scratch=${SCRATCH:-/tmp}
echo "$LWS_LEADER_ADDRESS slots=$NODE_RANKS" > "$scratch/hosts"
for ((worker = 1; worker < LWS_GROUP_SIZE; worker++)); do
    address=$leader-$worker.$domain
    until (exec 3<> "/dev/tcp/$address/$port") 2> /dev/null; do sleep 1; done
    echo "$address slots=$NODE_RANKS" >> "$scratch/hosts"
done
# Host keys are of the deployment's own Secret, which every Pod of it has.
export OMPI_MCA_orte_default_hostfile=$scratch/hosts
export OMPI_MCA_plm_rsh_agent="ssh -p $port -i ${SSH_KEYS:-/ssh}/id_ed25519 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
export OMPI_MCA_mca_base_env_list="PATH;LD_LIBRARY_PATH;HOME;USER;PYTHONDONTWRITEBYTECODE"
exec "$@"
