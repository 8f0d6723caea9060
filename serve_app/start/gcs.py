"""A question to a Ray cluster whether it can be used, asked without Ray: Ray tries for minutes and prints much."""

import socket
from collections.abc import Mapping

import grpc

from serve_app.start.addresses import authority
from serve_app.start.environment import token_of
from serve_app.start.errors import StartError

TIMEOUT_S = 3.0
FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what every process asks a cluster first


def check_cluster_answers(host: str, port: int, environment: Mapping[str, str]) -> None:
    """Raise StartError if no Ray cluster answers there that this environment may connect to."""
    given = environment.get("RAY_ADDRESS")
    _check_listens(host, port, given)
    if environment.get("RAY_USE_TLS", "0").lower() not in ("0", "false"):
        return  # the certificates are Ray's to read
    place = authority(host, port)
    sends_token = environment.get("RAY_AUTH_MODE", "").lower() == "token"
    token = token_of(environment) if sends_token else None
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(FIRST_CALL, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                reason = "the one that was found is not its" if token else "none was found"
                if not sends_token and token_of(environment):
                    reason = "RAY_AUTH_MODE keeps it from being sent"
                raise StartError(
                    f"the Ray cluster at {place} asks for a token, and {reason}: set RAY_AUTH_TOKEN, or"
                    " RAY_AUTH_TOKEN_PATH to a file with it, and RAY_AUTH_MODE=token"
                ) from None
            raise StartError(
                f"what answers at {place} (RAY_ADDRESS is {given}) is no Ray cluster: {error.code().name.lower()}"
            ) from None


def _check_listens(host: str, port: int, given: str | None) -> None:
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StartError(
            f"no Ray cluster answers at {authority(host, port)} (RAY_ADDRESS is {given}): {problem}. Start it with"
            " `ray start --head`, or unset RAY_ADDRESS to have one started"
        ) from None
