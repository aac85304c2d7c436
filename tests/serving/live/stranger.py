"""Knocks at ports of another machine without a token: `HOST PORT...`; says in JSON what answered."""

from __future__ import annotations

import http.client
import json
import socket
import sys

import grpc

METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.serve.RayServeAPIService/ListApplications",
    "/ray.serve.ASGIService/HandleRequest",
    "/longtake.v1.Sessions/ListSessions",
)
PATHS = ("/", "/api/jobs/", "/api/ray/version", "/get_or_create_runtime_env")
ANSWER_S = 5


def is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except OSError:
        return False
    return True


def answers(host: str, port: int) -> dict[str, str]:
    """What becomes of calls of the methods of gRPC, and of requests for the paths of HTTP."""
    found = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=ANSWER_S)  # type: ignore[call-arg]
                found[method] = "OK"
            except grpc.RpcError as error:
                found[method] = error.code().name
    for path in PATHS:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            found[path] = str(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
    return found


if __name__ == "__main__":
    address, *ports = sys.argv[1:]
    there = [int(port) for port in ports if is_open(address, int(port))]
    print(json.dumps({port: answers(address, port) for port in there}))
