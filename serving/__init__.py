"""Sessions, video encoding, the network and the command line.

The way of a command: `session_manager` or `web` (a face), `sessions` (asks replicas, keeps mirrors), `fleet` and
`session_router` (who holds it), `denoiser` (the authority), `session` (the rules, pure). The way of a block:
`production` asks `scheduler` whose is next, then text stage, generator, picture stage (`stages` here,
`remote_stages` elsewhere), and `follower` carries the chunk to each viewer.
"""
