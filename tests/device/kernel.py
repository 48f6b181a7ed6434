"""Debian's arm64 kernel with 16 KiB pages, as a Raspberry Pi 5 boots one, and an initrd that knows one disk."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from device.rootfs import CACHE, MIRROR, BoardError, Say

SUITE = "trixie"
PACKAGE = "linux-image-arm64-16k"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_LINE = "apt-get install -y --no-install-recommends qemu-system-arm e2fsprogs debian-archive-keyring"
PROGRAMS = ("qemu-system-aarch64", "mke2fs", "setpriv", "apt-get", "dpkg-deb")

# In the order in which they need each other.
_MODULES = (
    "crypto/crc32c_generic", "lib/libcrc32c", "lib/crc16", "fs/mbcache", "fs/jbd2/jbd2", "fs/ext4/ext4",
    "drivers/block/virtio_blk", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
)  # fmt: skip
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for each in {modules}; do /bin/busybox insmod /$each.ko; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
exec /bin/busybox switch_root /root {program}
"""
_APT = """Dir "{folder}";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc "{folder}";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "arm64";
APT::Architectures "arm64";
APT::Sandbox::User "root";
Acquire::Languages "none";
APT::Update::Error-Mode "any";
"""


def missing() -> str | None:
    """Why no whole system can be emulated here, and what to do; None when one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent or not KEYRING.exists():
        return f"{', '.join(absent) or KEYRING} not found: {APT_LINE}"
    return None


def boot_files(busybox: Path, program: str, say: Say) -> tuple[Path, Path]:
    """The kernel and an initrd that runs `program` of the first disk; made once. Raises BoardError."""
    made_of = "\n".join([SUITE, PACKAGE, _INIT, program, *_MODULES])
    kept = CACHE / f"kernel-16k-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if not kept.exists():
        with TemporaryDirectory(prefix="kernel-", dir=CACHE) as scratch:
            folder = Path(scratch)
            say(f"{PACKAGE} of {SUITE} from {MIRROR}: downloading (92 MB)")
            unpacked = _download(folder)
            made = folder / "made"
            made.mkdir()
            (image,) = (unpacked / "boot").glob("vmlinuz-*")
            shutil.copy(image, made / "vmlinuz")
            (made / "initrd.gz").write_bytes(gzip.compress(_initrd(unpacked, busybox, program), 6, mtime=0))
            made.rename(kept)
    return kept / "vmlinuz", kept / "initrd.gz"


def _download(folder: Path) -> Path:
    """The kernel's package, its signature checked by apt with settings of its own, unpacked."""
    for name in ("lists/partial", "cache/archives/partial", "unpacked"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(_APT.format(folder=folder))
    (folder / "sources.list").write_text(f"deb [arch=arm64 signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
    environment = os.environ | {"APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C"}

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
        if done.returncode:
            raise BoardError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    run("apt-get", "-q", "update")
    depends = run("apt-cache", "depends", PACKAGE).split()
    run("apt-get", "-q", "download", next(word for word in depends if word.startswith("linux-image-6")))
    (package,) = folder.glob("linux-image-*.deb")
    run("dpkg-deb", "--extract", str(package), str(folder / "unpacked"))
    return folder / "unpacked"


def _initrd(unpacked: Path, busybox: Path, program: str) -> bytes:
    (modules,) = (unpacked / "usr/lib/modules").iterdir()
    entries: dict[str, bytes | None] = {"bin": None, "dev": None, "root": None, "bin/busybox": busybox.read_bytes()}
    names = []
    for module in _MODULES:
        packed = modules / "kernel" / f"{module}.ko.xz"
        if packed.exists():  # what a kernel has built in is no file
            names.append(packed.name.removesuffix(".ko.xz"))
            entries[f"{names[-1]}.ko"] = lzma.decompress(packed.read_bytes())
    entries["init"] = _INIT.format(modules=" ".join(names), program=program).encode()
    return b"".join(_cpio(entries))


def _cpio(entries: dict[str, bytes | None]) -> Iterator[bytes]:
    """An archive in cpio's format `newc`, as the kernel's initramfs document says; None is a directory."""
    for number, (name, body) in enumerate([*entries.items(), ("TRAILER!!!", b"")], 1):
        mode = stat.S_IFDIR | 0o755 if body is None else stat.S_IFREG | 0o755
        raw, text = body or b"", name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(raw), 0, 0, 0, 0, len(text), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + text
        yield head + bytes(-len(head) % 4) + raw + bytes(-len(raw) % 4)
