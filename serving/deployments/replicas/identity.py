"""Which replica this process is."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.handle import DeploymentHandle


def this_replica() -> str:
    """Its id in Serve, which goes with every session that it holds."""
    return serve.get_replica_context().replica_id.unique_id


def this_deployment() -> DeploymentHandle[Any]:
    """The deployment that it is a replica of."""
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name)


def this_deployment_id() -> DeploymentID:
    """What routers call that deployment."""
    context = serve.get_replica_context()
    return DeploymentID(context.deployment, context.app_name)
