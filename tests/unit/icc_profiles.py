"""ICC profiles by hand, and what colours under them are in sRGB, by matrices."""

import struct

import numpy as np
from numpy.typing import NDArray

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def to_d50(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Linear RGB under D65 -> XYZ under D50: the primaries scaled to white, adapted by Bradford's matrix."""
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    return adapted @ matrix


def srgb_decode(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_encode(value: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def curve(gamma: float | None) -> bytes:
    """A power, or None for sRGB's curve as a table."""
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    table = np.rint(srgb_decode(np.linspace(0, 1, 1024)) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + table


def xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + np.rint(values * 65536).astype(">i4").tobytes()


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 2 (ICC.1:2001-04): header, table of tags, tags."""
    named = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"t\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"\0",
    }
    tags = {**named, b"wtpt": xyz(D50), **tags}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += np.rint(D50 * 65536).astype(">i4").tobytes() + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, to_d50(primaries).T), strict=True))
    return profile(b"RGB ", {**columns, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


ADOBE_PROFILE = rgb_profile(ADOBE, 2.19921875)
P3_PROFILE = rgb_profile(P3, None)
SRGB_PROFILE = rgb_profile(SRGB, None)


def cmyk_profile() -> bytes:
    """Of a printer whose inks are sRGB's opposites, through a table of 2^4 corners to Lab under D50."""
    corners = np.array([(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)], dtype=float)
    linear = (1 - corners[:, :3]) * (1 - corners[:, 3:])
    ratio = linear @ to_d50(SRGB).T / D50
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    table = np.rint(lab * [255 / 100, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    identity = np.rint(np.eye(3).ravel() * 65536).astype(">i4").tobytes()
    a2b = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    return profile(b"CMYK", {b"A2B0": a2b}).replace(b"mntrCMYKXYZ ", b"prtrCMYKLab ", 1)
