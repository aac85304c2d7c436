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
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.serve.RayServeAPIService/ListApplications",
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


def served(host: str, port: int) -> list[str]:
    """The methods of gRPC and paths of HTTP that are answered."""
    found = []
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=ANSWER_S)  # type: ignore[call-arg]
                found.append(method)
            except grpc.RpcError:
                pass
    for path in PATHS:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            if connection.getresponse().status < 400:
                found.append(path)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
    return found


if __name__ == "__main__":
    address, *ports = sys.argv[1:]
    there = [int(port) for port in ports if is_open(address, int(port))]
    print(json.dumps({port: served(address, port) for port in there}))
