"""How Ray and Serve are set up, as far as they read that from their environment."""

from __future__ import annotations

from serving.client.operator import MOST_MESSAGE_BYTES

ENVIRONMENT = {
    # By default 15: beside any other program a replica would have a thirtieth of the time that it has.
    "RAY_worker_niceness": "0",
    # The controller would kill a proxy that is not there after 5 s: on a busy machine none ever is.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Clients have no server for as long as nobody knows that the only proxy is gone, which takes three questions.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.25",
    # A proxy that is stopped or cut off would hold up the managers that answer it: see `ReplicaClient`.
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    # A message between replicas may have 4 MiB otherwise; what a decoder begins with has more.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # What clients and other servers may send at once: 2 GiB otherwise, held before anybody looks at it.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MOST_MESSAGE_BYTES),
    # For 10 s after its last answer a stopped manager would be sent the clients that come back.
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "1",
    # A second server on the same port would get half of the first one's clients.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
    # A WebSocket whose address has more than 8,192 characters would hang, and not be refused in words.
    "WEBSOCKETS_MAX_LINE_LENGTH": str(1 << 20),
    # A client that floods would fill the proxy's memory, and one whose manager dies be told nothing: see there.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.deployments.http_handlers:middlewares",
    "RAY_ROTATION_MAX_BYTES": str(64 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "4",
}
"""Of Ray's and Serve's processes, and of the one that starts them.

Each reads it as it imports Ray; the proxies' router has read it in that one, from which it comes by value.
"""
