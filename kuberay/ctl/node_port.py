"""nodeport: open a port on every node for the API."""

from __future__ import annotations

from kuberay.ctl import manifests
from kuberay.ctl.kube import KUBERAY, SERVICE, Cluster, CommandError, Json, echo, field

MANIFEST = KUBERAY / "components" / "nodeport" / "service-nodeport.yaml"


def open_node_port(cluster: Cluster, port: int) -> None:
    """Create the Service with the port, or move it to `port`; raises CommandError when the port belongs to another Service."""
    owner = _owner(cluster, port)
    if owner == (cluster.namespace, SERVICE):
        # The operator changes the type of its Service only in the next upgrade, so this type comes from an older version.
        echo(f"port {port} of every node is open already; it belongs to {SERVICE}")
        return
    documents = manifests.build(cluster, MANIFEST)
    (service,) = documents
    name = service["metadata"]["name"]
    if owner not in (None, (cluster.namespace, name)):
        raise CommandError(f"port {port} belongs to the Service {'/'.join(owner or ())}: choose another one with NODE_PORT=30081")
    service["spec"]["ports"][0]["nodePort"] = port
    cluster.run("apply", "-f", "-", text=manifests.dump(documents), namespaced=False)
    echo(f"the API answers on port {port} of every node; `kubectl delete service -n {cluster.namespace} {name}` closes it")


def node_ports(services: list[Json]) -> list[int]:
    """The node ports of the Services."""
    return [port["nodePort"] for service in services for port in field(service, "spec.ports", []) if port.get("nodePort")]


def _owner(cluster: Cluster, port: int) -> tuple[str, str] | None:
    """The namespace and the name of the Service that has this node port."""
    for service in cluster.items("services", all_namespaces=True):
        if port in node_ports([service]):
            return service["metadata"]["namespace"], service["metadata"]["name"]
    return None
