"""The boards that are emulated: what qemu calls their processor, and what the board itself says of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BoardModel:
    """A Raspberry Pi; `features` and the numbers are those of its own /proc/cpuinfo."""

    name: str
    device: str
    """The device profile it stands for."""
    qemu_cpu: str
    title: str
    features: str
    variant: str
    part: str
    stepping: int
    revision: str

    def cpuinfo(self) -> str:
        """/proc/cpuinfo as the board's kernel prints it."""
        cores = [
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\n"
            f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {self.variant}\n"
            f"CPU part\t: {self.part}\nCPU revision\t: {self.stepping}\n"
            for core in range(4)
        ]
        tail = f"Revision\t: {self.revision}\nSerial\t\t: 100000000000002a\nModel\t\t: {self.title}\n"
        return "\n".join([*cores, tail])


PI4 = BoardModel(
    name="pi4",
    device="raspberry-pi-4-4gb",
    qemu_cpu="cortex-a72",
    title="Raspberry Pi 4 Model B Rev 1.5",
    features="fp asimd evtstrm crc32 cpuid",
    variant="0x0",
    part="0xd08",
    stepping=3,
    revision="c03115",
)
PI5 = BoardModel(
    name="pi5",
    device="raspberry-pi-5-8gb",
    qemu_cpu="cortex-a76",
    title="Raspberry Pi 5 Model B Rev 1.0",
    features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    variant="0x4",
    part="0xd0b",
    stepping=1,
    revision="d04170",
)
MODELS = {model.name: model for model in (PI4, PI5)}
