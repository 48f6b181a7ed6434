"""Stand-ins for /proc and /sys of boards and laptops, as their kernels write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PI4_FLAGS = "fp asimd evtstrm crc32 cpuid"
PI5_FLAGS = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"  # no i8mm
)
LAPTOP_NAME = "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz"
LAPTOP_FLAGS = "fpu sse sse2 pni ssse3 fma avx f16c avx2 bmi2 avx512f avx512dq avx512bw avx512vl avx512vbmi avx512_vnni"


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below `root`, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


def arm_cpuinfo(parts: Sequence[str], features: str, implementer: str = "0x41") -> str:
    """/proc/cpuinfo of an arm64 kernel, a processor for each part number."""
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
        for number, part in enumerate(parts)
    )


def meminfo(total: int, free: int, swap: int = 0, swap_free: int = 0) -> str:
    """/proc/meminfo; sizes in kB."""
    return (
        f"MemTotal:       {total:>8} kB\nMemFree:          100000 kB\nMemAvailable:   {free:>8} kB\n"
        f"SwapTotal:      {swap:>8} kB\nSwapFree:       {swap_free:>8} kB\nHugePages_Total:       0\n"
    )


def clocks(mhz: Sequence[int], governor: str = "ondemand") -> dict[str, str]:
    """The clocks of /sys: each processor's highest, which is also the present one."""
    place = "sys/devices/system/cpu/cpu{}/cpufreq/{}"
    values = {"cpuinfo_max_freq": None, "scaling_cur_freq": None, "scaling_governor": governor}
    return {
        place.format(number, name): f"{value or clock * 1000}\n"
        for number, clock in enumerate(mhz)
        for name, value in values.items()
    }


ZONE, COOLER = "sys/class/thermal/thermal_zone0/temp", "sys/class/thermal/cooling_device0"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"

PI4 = {
    "proc/cpuinfo": arm_cpuinfo(["0xd08"] * 4, PI4_FLAGS) + "\nRevision\t: c03115\nModel\t\t: Raspberry Pi 4 Model B\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
    "proc/meminfo": meminfo(3884392, 3400000, 102396, 102396),
    ZONE: "48686\n",
    FIRMWARE: "0\n",
    **clocks([1800] * 4),
}
PI5 = {
    "proc/cpuinfo": arm_cpuinfo(["0xd0b"] * 4, PI5_FLAGS),
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": meminfo(8245248, 7600000, 204784, 204784),
    ZONE: "52100\n",
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0\n",
    **clocks([2400] * 4),
}
ZERO2 = {
    "proc/cpuinfo": arm_cpuinfo(["0xd03"] * 4, PI4_FLAGS),
    "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
    "proc/meminfo": meminfo(427320, 250000),
    ZONE: "81500\n",
    FIRMWARE: "50005\n",
    **clocks([1000] * 4, "powersave"),
}
ORANGE5 = {
    "proc/cpuinfo": arm_cpuinfo(["0xd05"] * 4 + ["0xd0b"] * 4, PI5_FLAGS),
    "proc/device-tree/model": "Xunlong Orange Pi 5\0",
    "proc/meminfo": meminfo(16331000, 15000000),
    ZONE: "39000\n",
    "sys/class/thermal/thermal_zone1/temp": "41000\n",
    f"{COOLER}/type": "cpufreq-cpu0\n",
    f"{COOLER}/cur_state": "0\n",
    **clocks([1800] * 4 + [2352] * 4),
}
JETSON = {
    "proc/cpuinfo": arm_cpuinfo(["0xd42"] * 6, f"{PI5_FLAGS} uscat ilrcpc flagm paca pacg"),
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/meminfo": meminfo(7800000, 6500000, 3900000, 3900000),
    ZONE: "47500\n",
    "sys/class/thermal/thermal_zone1/temp": "-256000\n",  # a sensor that is off
    f"{COOLER}/type": "cpufreq-cpu0\n",
    f"{COOLER}/cur_state": "0\n",
    **clocks([1510] * 6, "schedutil"),
}
LAPTOP = {
    "proc/cpuinfo": "".join(
        f"processor\t: {number}\nmodel name\t: {LAPTOP_NAME}\nflags\t\t: {LAPTOP_FLAGS}\n\n" for number in range(8)
    ),
    "proc/meminfo": meminfo(16143160, 9000000, 2097148, 1000000),
    f"{COOLER}/type": "Processor\n",
    f"{COOLER}/cur_state": "2\n",
    **{f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)},
    **clocks([4700] * 8, "powersave"),
}
BOARDS = {"pi4": PI4, "pi5": PI5, "zero2": ZERO2, "orange5": ORANGE5, "jetson": JETSON, "laptop": LAPTOP}
