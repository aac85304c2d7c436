"""Compiling a kernel for a chip that is not at hand, and reading what came out.

Triton compiles with no driver; the tools that read machine code come in its wheel. What they count is what decides
before any timing: registers, spills, shared memory, tensor-core instructions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from kernels.tiles import SHARED_BYTES, AotCase, interpreted

WARP = 32
SPILLS = ("LDL", "STL")
"""Loads and stores of local memory: where a register did not suffice."""

TENSOR_CORE = ("HMMA", "HMMA.F16", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA")
"""HMMA.F16 are those of HMMA that sum in fp16."""
ASYNCHRONOUS = ("LDGSTS", "UTMALDG", "UBLKCP")
"""Copies to shared memory that pass no register: cp.async and TMA."""


@dataclass(frozen=True)
class Compiled:
    """What a kernel became.

    `registers` are of a thread, `local_bytes` too: its stack, spills included. `spills` counts the instructions
    that move registers to and from there, `opcodes` the tensor-core and asynchronous-copy instructions.
    """

    name: str
    architecture: int
    registers: int
    spills: int
    local_bytes: int
    shared_bytes: int
    warps: int
    opcodes: dict[str, int]

    def faults(self, case: AotCase) -> list[str]:
        """What keeps it from being used: nothing, it is hoped."""
        limit = SHARED_BYTES[case.architecture]
        found = []
        if self.spills or self.local_bytes:
            found.append(f"{self.spills} spills, {self.local_bytes} bytes of stack")
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory where sm_{case.architecture} has {limit}")
        found += [f"no {needed}" for needed in case.needs if not set(needed.split("|")) & self.opcodes.keys()]
        return [f"{self.name}: {fault}" for fault in found]

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def compile_case(case: AotCase) -> Compiled:
    """Compile for the case's architecture and read the machine code.

    Raises:
        RuntimeError: Triton interprets in this process, so it has no kernel to compile.

    """
    if interpreted():
        raise RuntimeError(
            f"{case.name}: unset TRITON_INTERPRET to compile; an interpreted kernel is plain Python"
        )
    kernel = triton_compile(_source(case), GPUTarget("cuda", case.architecture, WARP), case.tile.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage, code = _cuobjdump("-res-usage", cubin), _cuobjdump("-sass", cubin)
    opcodes = _opcodes(code)
    return Compiled(
        name=case.name,
        architecture=case.architecture,
        registers=_resource(usage, "REG"),
        spills=sum(opcodes[opcode] for opcode in SPILLS),
        local_bytes=_resource(usage, "STACK") + _resource(usage, "LOCAL"),
        shared_bytes=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        opcodes={opcode: opcodes[opcode] for opcode in (*TENSOR_CORE, *ASYNCHRONOUS) if opcodes[opcode]},
    )


def _opcodes(code: str) -> Counter[str]:
    """Instructions of a listing by their names without what follows the first dot, but for the type of a sum."""
    instruction = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9]*)((?:\.\w+)*)"
    found = re.findall(instruction, code, re.MULTILINE)
    sums = Counter(f"{name}.F16" for name, form in found if name == "HMMA" and form.endswith(".F16"))
    return Counter(name for name, _ in found) + sums


def _source(case: AotCase) -> ASTSource:
    names = case.kernel.arg_names
    given = set(case.arguments) | set(case.constants)
    if set(names) != given:
        raise ValueError(f"{case.name}: parameters {names} but given {sorted(given)}")
    signature = {name: case.arguments.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    return ASTSource(case.kernel, signature, dict(case.constants), attrs)


def _cuobjdump(option: str, cubin: Path) -> str:
    command = (knobs.nvidia.cuobjdump.path, option, str(cubin))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _resource(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump told no {name} in: {usage}")
    return int(found.group(1))
