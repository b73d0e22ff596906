"""Reads which files an ONNX graph points to, and whose operators it has, without the onnx package.

A walk over the protobuf wire format of ``onnx.proto``: only the few fields through which a
tensor can be reached are followed, everything else is skipped.
"""

from collections.abc import Iterator

from vlmc.errors import VlmcError

# message -> field number -> message inside it; names and numbers are onnx.proto's.
_REACH: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "Function": {7: "Node", 11: "Attribute"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_DEPTH = 64
_OPSET = 8  # the field of a model that names a domain (1) and its version (2)


def external_locations(graph: memoryview) -> set[str]:
    """Every ``location`` of external data in a serialized ``ModelProto``, subgraphs included.

    Raises:
        VlmcError: The bytes are no protobuf message, or nested deeper than any real graph.
    """
    found: set[str] = set()
    stack = [("Model", graph, 0)]
    while stack:
        kind, message, depth = stack.pop()
        if depth > _DEPTH:
            raise VlmcError("the graph is nested too deeply")
        for field, value in _fields(message):
            inner = _REACH[kind].get(field)
            if inner == "Entry":
                found.update(_location(value))
            elif inner is not None:
                stack.append((inner, value, depth + 1))
    return found


def domain_version(graph: memoryview, domain: str) -> int | None:
    """The version of a domain's operators that a serialized ``ModelProto`` is made for.

    None where it imports none of them.

    Raises:
        VlmcError: The bytes are no protobuf message.
    """
    for field, value in _fields(graph):
        if field == _OPSET and dict(_fields(value)).get(1, b"") == domain.encode():
            return dict(_numbers(value)).get(2, 1)
    return None


def _location(entry: memoryview) -> Iterator[str]:
    pair = {field: bytes(value) for field, value in _fields(entry)}
    if pair.get(1) == b"location":
        yield pair.get(2, b"").decode("utf-8", errors="replace")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message, in order."""
    return ((field, value) for field, value in _walk(message) if not isinstance(value, int))


def _numbers(message: memoryview) -> Iterator[tuple[int, int]]:
    """The fields of a message that are whole numbers, in order."""
    return ((field, value) for field, value in _walk(message) if isinstance(value, int))


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        size, start = (8 if kind == 1 else 4, at) if kind in (1, 5) else _varint(message, at)
        if kind not in (1, 2, 5) or start + size > len(message):
            raise VlmcError("not an ONNX graph: its bytes are damaged")
        if kind == 2:
            yield tag >> 3, message[start : start + size]
        at = start + size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise VlmcError("not an ONNX graph: its bytes are damaged")
