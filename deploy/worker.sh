#!/bin/bash
# A Pod that is not the first: lets the first one start its ranks here, by sshd as no root user.
set -euo pipefail
port=${SSH_PORT:-2222} scratch=${SCRATCH:-/tmp} keys=${SSH_KEYS:-/ssh}
cat > "$scratch/sshd_config" <<END
Port $port
HostKey $keys/id_ed25519
AuthorizedKeysFile $keys/id_ed25519.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
SetEnv PATH=$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
END
exec /usr/sbin/sshd -D -e -f "$scratch/sshd_config"
