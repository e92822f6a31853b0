"""PyTorch's own allocator without a GPU: its compiled library from a wheel, and a stand-in for the CUDA beneath it.

    python -m benchmarks.gpu.stand_in.record 2.14.1 [--cases 12] [--write]

downloads the wheel of that release (up to 1 GB) and NVIDIA's headers with pip, takes libc10_cuda.so and libc10.so out,
builds cuda.c (which hands out addresses and counts bytes) and drive.cpp around them with gcc, and runs random programs.
Each is compared with gradaccum.memory after every operation. What it downloads and builds stays in .cache/bench/.
--write puts the programs and PyTorch's numbers where the tests replay them: tests/memory/recorded/<release>.json.

Linux on x86-64, and a CUDA 12 or 13 wheel of PyTorch 2.10 or later. The device itself is what this cannot show:
where a driver puts segments, and what it takes for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks import common
from benchmarks.gpu.allocator_programs import Case, Numbers, of_model, random_case, told
from gradaccum.memory.allocator import ties_of

HERE = Path(__file__).resolve().parent
RECORDED = common.ROOT / "tests" / "memory" / "recorded"
HEADERS = {
    "12": ["nvidia-cuda-runtime-cu12==12.8.*"],
    "13": ["nvidia-cuda-runtime==13.0.*"],
    "crt": ["nvidia-cuda-crt==13.0.*"],  # compiler headers, which the runtime's of CUDA 12 lack
}


def main() -> None:
    """Build the driver for one release, run the cases, compare, and write them if asked to."""
    parser = argparse.ArgumentParser(description="PyTorch's own allocator on a stand-in for CUDA, beside the model.")
    parser.add_argument("release", help="of torch, such as 2.14.1")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--write", action="store_true", help="into tests/memory/recorded/")
    asked = parser.parse_args()
    folder = common.CACHE / f"torch-{asked.release}"
    drive = built(folder, asked.release)
    ties = ties_of(asked.release)
    large_segments = tuple(int(part) for part in asked.release.split(".")[:2]) >= (2, 11)
    recorded, different = [], 0
    for seed in range(asked.first, asked.first + asked.cases):
        case = random_case(seed, large_segments=large_segments)
        # By turns the device is as small as the limit, or twice as large and half of it allowed.
        capacity, total, fraction = [(case.limit, case.limit, 1.0), (2 * case.limit, 2 * case.limit, 0.5)][seed % 2]
        addresses = ["descending", "ascending"][seed // 2 % 2]
        measured = run(drive, case, capacity, total, fraction, addresses)
        if measured != list(of_model(case, ties, addresses, capacity, total, fraction)):
            different += 1
            print(f"case {seed} differs: {case.settings}")
        setting = {"settings": case.settings, "capacity": capacity, "total_memory": total, "fraction": fraction}
        told_in_full = {"addresses": addresses, "operations": " ".join(case.operations)}
        recorded.append({**setting, **told_in_full, **told(case.operations, measured)})
    print(f"torch {asked.release}: {asked.cases - different} of {asked.cases} programs equal after every operation")
    if asked.write:
        versions = (folder / "torch" / "version.py").read_text(encoding="utf-8")
        found = {
            name: re.search(rf"^{name}(?:: [^=]*)? = '(.*)'$", versions, re.M)
            for name in ("__version__", "git_version")
        }
        head = {
            "torch": found["__version__"][1] if found["__version__"] else asked.release,
            "git": found["git_version"][1] if found["git_version"] else None,
            "device": None,
            "how": "the wheel's libc10_cuda.so on a stand-in for the CUDA runtime: benchmarks/gpu/stand_in",
        }
        RECORDED.mkdir(parents=True, exist_ok=True)
        path = RECORDED / f"{asked.release}.json"
        lines = ",\n".join(json.dumps(each) for each in recorded)
        path.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n', encoding="utf-8")
        print(f"written to {path.relative_to(common.ROOT)}")


def run(
    drive: Path, case: Case, capacity: int, total: int, fraction: float, addresses: str = "descending"
) -> list[Numbers]:
    """What PyTorch's allocator says after each operation."""
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "FATAL", "TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC": "0"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment.pop(name, None)
        if case.settings:
            environment[name] = case.settings
    command = [str(drive), str(capacity), str(total), repr(fraction), str(int(addresses == "ascending"))]
    text = " ".join(case.operations)
    child = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr}")
    return [Numbers(*map(int, line.split())) for line in child.stdout.splitlines()]


def built(folder: Path, release: str) -> Path:
    """The program that drives this release's allocator; made where it is not there yet."""
    drive = folder / "drive"
    if drive.exists():
        return drive
    libraries = folder / "torch" / "lib"
    if not libraries.exists():
        unpacked(folder, f"torch=={release}", ("torch/lib/libc10", "torch/include/", "torch/version.py"))
    needed = subprocess.run(
        ["readelf", "-d", str(libraries / "libc10_cuda.so")], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"libcudart\.so\.(12|13)", needed)
    if match is None:
        raise SystemExit(f"torch {release} is no build for CUDA 12 or 13")
    runtime, cuda = match[0], match[1]
    for package in (*HEADERS[cuda], *HEADERS["crt"]):
        unpacked(folder / "headers", package, ("nvidia/",))
    includes = [path.parent for path in (folder / "headers").rglob("cuda_runtime_api.h")]
    includes += [path.parent.parent for path in (folder / "headers").rglob("crt/host_config.h")]
    # Whatever else the library wants of CUDA does nothing and succeeds.
    source = (HERE / "cuda.c").read_text(encoding="utf-8")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(libraries / "libc10_cuda.so")], capture_output=True, text=True, check=True
    ).stdout
    wanted = set(re.findall(r"\b(cuda\w+)@libcudart", symbols)) - set(re.findall(r"\b(cuda\w+)\(", source))
    stand_in, exports = folder / "cuda.c", folder / "exports"
    stand_in.write_text(source + "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted)))
    exports.write_text(f"{runtime} {{ global: *; }};\n")
    library = str(libraries / runtime)
    shared = ["-shared", "-fPIC", f"-Wl,-soname,{runtime}", f"-Wl,--version-script,{exports}"]
    subprocess.run(["gcc", "-O1", "-w", *shared, "-o", library, str(stand_in)], check=True)
    where = [f"-I{folder / 'torch' / 'include'}", *(f"-I{path}" for path in includes)]
    link = [f"-L{libraries}", "-lc10_cuda", "-lc10", f"-l:{runtime}", f"-Wl,-rpath,{libraries}"]
    link.append("-Wl,--allow-shlib-undefined")
    source_file = str(HERE / "drive.cpp")
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", *where, source_file, "-o", str(drive), *link], check=True)
    return drive


def unpacked(folder: Path, package: str, beginnings: tuple[str, ...]) -> None:
    """Some files of a wheel from the package index; the wheel itself is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    subprocess.run([*pip, "--dest", str(wheels), package], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(beginnings)])
        wheel.unlink()


if __name__ == "__main__":
    main()
