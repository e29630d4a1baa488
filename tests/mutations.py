"""Damages files for `fuzz.py`: random bytes, and header fields with values that no valid file has."""

import re
import struct
import zlib

import numpy as np

Random = np.random.Generator

_NIFTI_FIELDS = [
    *[(0, "i"), (68, "h"), (70, "h"), (72, "h"), (74, "h"), (108, "f"), (112, "f"), (116, "f"), (120, "h")],
    *[(122, "b"), (123, "b"), (124, "f"), (128, "f"), (252, "h"), (254, "h"), (344, "i"), (348, "i"), (352, "i")],
    *[(40 + 2 * i, "h") for i in range(8)],  # dim
    *[(76 + 4 * i, "f") for i in range(8)],  # pixdim
    *[(256 + 4 * i, "f") for i in range(18)],  # quaternion, offsets, sform
]
_DATATYPES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 9999]
_FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    -10.0,
    348.0,
    351.5,
    352.0,
    1e-45,
    1e38,
    -1e38,
    np.inf,
    -np.inf,
    np.nan,
    2.0**31,
    2.0**63,
]
_TEXTS = [
    *[
        b"",
        b" ",
        b"N/A ",
        b"abc ",
        b"IMG7",
        b"1,5 ",
        b"1\\2 ",
        b"1\\2\\3\\4\\5\\6\\7 ",
        b"\\\\",
        b"1e999 ",
        b"nan ",
        b"inf ",
        b"-1",
    ],
    *[b"0 ", b"1.5 ", b"99999999999 ", b"U ", b"ANON", b"19700000", b"10:11:12", b"ISO_IR_100", b"\\ISO 2022 IR 87 "],
    *[
        b"10:1",
        b"mr",
        b"O ",
        b"1.2.3.",
        b"\xff\xfe\xfd\xfc",
        b"\x00\x00",
        b"\xff\xff",
        b"\x00\x80",
        b"\x01\x00\x02\x00",
    ],
]
_SYNTAXES = [
    *["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"],
    *["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"],
    *["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100", "1.2.3.4", ""],
]


def mutate_bytes(data: bytes, random: Random, header: int = 512) -> bytes:
    """Flips, overwrites, cuts, doubles, swaps or removes bytes, mostly within the first `header`."""
    damaged = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        if not damaged:
            break
        reach = min(header, len(damaged)) if random.random() < 0.75 else len(damaged)
        at = int(random.integers(reach))
        end = min(len(damaged), at + int(random.choice([1, 2, 4, 16, 200])))
        other = int(random.integers(len(damaged)))
        match int(random.integers(9)):
            case 0 | 1 | 2:
                for place in random.integers(reach, size=int(random.integers(1, 9))):
                    damaged[place] ^= 1 << int(random.integers(8))
            case 3:
                damaged[at:end] = random.bytes(end - at)
            case 4:
                damaged[at:end] = bytes([int(random.choice([0, 255, 127, 128]))]) * (end - at)
            case 5:
                del damaged[at if random.random() < 0.3 else other :]
            case 6:
                damaged[at:at] = damaged[at:end]
            case 7:
                del damaged[at:end]
            case 8:
                a, b = bytes(damaged[at:end]), bytes(damaged[other : other + end - at])
                damaged[at:end], damaged[other : other + len(b)] = b, a
    return bytes(damaged)


def _extreme(code: str, random: Random) -> int | float:
    """An extreme number that struct can pack as `code`."""
    if code in "fd":
        return float(random.choice(_FLOATS)) if random.random() < 0.8 else float(random.normal(scale=100.0))
    bits = 8 * struct.calcsize(code)
    unsigned = int(random.choice([0, 1, 2, 3, 4, 7, 8, 16, 255, 2**15, 2**16 - 1, 2 ** (bits - 1), 2**bits - 1]))
    if random.random() < 0.2:
        unsigned = int.from_bytes(random.bytes(bits // 8), "little")
    unsigned %= 2**bits
    return unsigned - 2**bits if code.islower() and unsigned >= 2 ** (bits - 1) else unsigned


def mutate_nifti(data: bytes, random: Random) -> bytes:
    """Damages fields of a NIfTI-1 header of either byte order, or bytes."""
    if random.random() < 0.35:
        return mutate_bytes(data, random, header=356)
    damaged = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        offset, code = _NIFTI_FIELDS[int(random.integers(len(_NIFTI_FIELDS)))]
        if random.random() < 0.3:
            offset, code = [(70, "h"), (40, "h"), (42, "h"), (44, "h"), (46, "h"), (108, "f")][int(random.integers(6))]
        value = int(random.choice(_DATATYPES)) if offset == 70 else _extreme(code, random)
        struct.pack_into("<" + code, damaged, offset, value)
    return bytes(damaged)


def mutate_gzip(data: bytes, random: Random) -> bytes:
    """Damages a compressed NIfTI file: its content, the stream, or a bomb after it. `data` is not compressed."""
    chance = random.random()
    if chance < 0.6:
        return _gzip(mutate_nifti(data, random))
    if chance < 0.98:
        return mutate_bytes(_gzip(data), random, header=24)
    return _gzip(data) + _gzip(bytes(2**24)) * 40  # 640 MB of zeros, in 0.6 MB


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(data) + packer.flush()


def mutate_dicom(files: list[bytes], random: Random) -> list[bytes]:
    """Damages slices of one series in explicit little endian: removes or overwrites elements, in one file or in all.

    The preamble stays. Elements of the file meta group change like others, so the transfer syntax may change.
    """
    one = int(random.integers(len(files)))
    if random.random() < 0.25:
        return [mutate_bytes(data, random, 1500) if at == one else data for at, data in enumerate(files)]
    tags = list(_elements(files[0]))
    edits = {}
    for _ in range(int(random.integers(1, 4))):
        tag = tags[int(random.integers(len(tags) - 1))] if random.random() < 0.95 else tags[-1]  # pixels are the last
        values = [
            None,
            _TEXTS[int(random.integers(len(_TEXTS)))],
            struct.pack("<H", _extreme("H", random)),
            random.bytes(2 * int(random.integers(40))),
            b"1\\" * int(random.choice([30, 5000])),
        ]
        vr = (
            None
            if random.random() < 0.9
            else bytes(random.choice([b"US", b"DS", b"IS", b"UI", b"SQ", b"OB", b"LO", b"AT"]))
        )
        edits[tag] = (values[int(random.choice(5, p=[0.3, 0.35, 0.2, 0.1, 0.05]))], vr)
    if random.random() < 0.1:
        edits[2, 0x10] = (_SYNTAXES[int(random.integers(len(_SYNTAXES)))].encode(), None)
    everywhere = random.random() < 0.5
    return [_edited(data, edits) if everywhere or at == one else data for at, data in enumerate(files)]


_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"UC", b"UR")  # VRs with a length of four bytes


def _elements(data: bytes) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """VR and value by tag, of a file without sequences."""
    found, at = {}, 132
    while at < len(data):
        tag, vr = struct.unpack_from("<HH", data, at), data[at + 4 : at + 6]
        start = at + (12 if vr in _LONG else 8)
        (length,) = struct.unpack_from("<I" if vr in _LONG else "<H", data, start - (4 if vr in _LONG else 2))
        found[tag] = (vr, data[start : start + length])
        at = start + length
    return found


def _edited(data: bytes, edits: dict) -> bytes:
    written = [data[:132]]
    for tag, (vr, value) in _elements(data).items():
        new, new_vr = edits.get(tag, (value, None))
        if new is None:
            continue
        new, vr = new + b" " * (len(new) % 2), new_vr or vr
        length = struct.pack("<HI", 0, len(new)) if vr in _LONG else struct.pack("<H", len(new))
        written.append(struct.pack("<HH", *tag) + vr + length + new)
    return b"".join(written)


def mutate_tiff(data: bytes, random: Random) -> bytes:
    """Damages directory entries of a little-endian TIFF, or bytes."""
    (start,) = struct.unpack_from("<I", data, 4)
    if random.random() < 0.4:
        return mutate_bytes(data, random, header=start + 200 if start < 1000 else 16)
    damaged = bytearray(data)
    (entries,) = struct.unpack_from("<H", data, start)
    for _ in range(int(random.integers(1, 4))):
        at = start + 2 + 12 * int(random.integers(entries))
        match int(random.integers(8)):
            case 0:
                struct.pack_into("<H", damaged, at, int(random.integers(254, 340)))  # tag
            case 1:
                struct.pack_into("<H", damaged, at + 2, int(random.integers(0, 20)))  # type
            case 2:
                struct.pack_into("<I", damaged, at + 4, _extreme("I", random))  # count
            case 3:
                struct.pack_into("<I", damaged, start + 2 + 12 * entries, int(random.choice([start, 4, 8, 2**31])))
            case 4:
                struct.pack_into("<H", damaged, start, _extreme("H", random))
            case 5:
                struct.pack_into("<I", damaged, 4, _extreme("I", random))
            case _:
                struct.pack_into("<I", damaged, at + 8, _extreme("I", random))  # value or offset
    return bytes(damaged)


def mutate_png(data: bytes, random: Random) -> bytes:
    """Damages chunks of a PNG, with correct checksums; or bytes."""
    if random.random() < 0.3:
        return mutate_bytes(data, random, header=60)
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(int(random.integers(1, 3))):
        place = int(random.integers(len(chunks))) if random.random() < 0.6 else 0
        name, body = chunks[place]
        match int(random.integers(6)):
            case 0 | 1 if name == b"IHDR" and len(body) == 13:
                fields = list(struct.unpack(">IIBBBBB", body))
                field = int(random.integers(7))
                fields[field] = _extreme("I" if field < 2 else "B", random)
                chunks[place] = (name, struct.pack(">IIBBBBB", *fields))
            case 2:
                chunks[place] = (name, mutate_bytes(body, random))
            case 3:
                del chunks[place]
                chunks = chunks or [(name, body)]
            case 4:
                chunks.insert(int(random.integers(len(chunks) + 1)), (name, body))
            case _:
                new = [b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"gAMA", b"eXIf", b"IDAT", b"????"]
                text = b"a\0\0" + zlib.compress(bytes(2**24), 1) if random.random() < 0.3 else random.bytes(9)
                chunks.insert(int(random.integers(len(chunks) + 1)), (new[int(random.integers(len(new)))], text))
    written = [data[:8]]
    for name, body in chunks:
        written.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(written)


# Central directory: version, flags, method, checksum, sizes, lengths of name, extra field and comment, offset.
_ZIP_FIELDS = [
    (6, "H"),
    (8, "H"),
    (10, "H"),
    (16, "I"),
    (20, "I"),
    (24, "I"),
    (28, "H"),
    (30, "H"),
    (32, "H"),
    (42, "I"),
]


def mutate_zip(data: bytes, random: Random) -> bytes:
    """Damages fields of the central directory or of a member's header, member names, or bytes."""
    if random.random() < 0.25:
        return mutate_bytes(data, random, header=len(data))
    starts = [match.start() for match in re.finditer(rb"PK\x01\x02", data)]
    damaged = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        at = starts[int(random.integers(len(starts)))]
        (local,) = struct.unpack_from("<I", data, at + 42)
        match int(random.integers(7)):
            case 0:  # encrypted, in both headers
                for place in (at + 8, local + 6):
                    struct.pack_into("<H", damaged, place, 1)
            case 1:  # a method that is not known here, or another one than was used
                method = int(random.choice([0, 1, 6, 9, 12, 14, 93, 98, 99]))
                for place in (at + 10, local + 8):
                    struct.pack_into("<H", damaged, place, method)
            case 2:  # a name
                names = [b"/", b"../", b"C:\\", b"\0\0", b"\xff\xfe", b"//", b"a/b/c/d/"]
                name = names[int(random.integers(len(names)))]
                damaged[at + 46 : at + 46 + len(name)] = name
                damaged[local + 30 : local + 30 + len(name)] = name
            case 3:  # header of a member
                struct.pack_into("<H", damaged, local + int(random.choice([4, 6, 8, 26, 28])), _extreme("H", random))
            case _:
                offset, code = _ZIP_FIELDS[int(random.integers(len(_ZIP_FIELDS)))]
                struct.pack_into("<" + code, damaged, at + offset, _extreme(code, random))
    return bytes(damaged)
