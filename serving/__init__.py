"""Sessions, video encoding, the network and the command line.

The way of a command: `deployments.session_manager` or `web`, `gateway.session_service` (asks replicas;
`gateway.callers` says who may, `gateway.failover` keeps sessions across losses), `deployments.routing` (finds the
replica), `worker.denoiser` (the authority; `worker.capacity` says whom it has time for),
`session.state_machine` (the rules, pure). The way of a block: `worker.blocks.block_loop` asks `scheduler` whose is
next, then prompts, generator and video decoder (`pipeline` here, `deployments.replicas.remote_stages` elsewhere),
and `worker.streams.audience` sends the chunk to each viewer.
"""

import os

# As in `engines`, which a client does without, and which may be imported after torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
