"""The software checks of `fercli doctor`: are fercli's requirements installed, and do they work?

Where it is quick, a check does the real thing: a matrix product on the device, finding a face in a drawn image. Version
numbers alone would show less. `unloadable` gives the same advice for a library that fails when a command first needs
it.

Only the standard library is imported here, so that this module can report whatever else is broken.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from fercli.machine import installed_version, no_cuda

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from fercli.spec import Spec

OK, WARN, FAIL = "ok", "warn", "fail"
#: All of them unpack into the same folder, cv2.
OPENCV_WHEELS = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
_PYTORCH = "install it as described on https://pytorch.org"
#: Import name -> how to reinstall the library, where that is not ``pip install`` with the same name.
_INSTALL = {**dict.fromkeys(("torch", "torchvision"), _PYTORCH), "lightning": "pip install lightning-fabric"}
#: System library -> the packages that contain it, in Debian and Ubuntu, and in Fedora and Red Hat.
_SYSTEM = {
    **{"libGL.so.1": ("libgl1", "mesa-libGL"), "libEGL.so.1": ("libegl1", "mesa-libEGL")},
    **dict.fromkeys(("libglib-2.0.so.0", "libgthread-2.0.so.0"), ("libglib2.0-0", "glib2")),
    **{"libGLESv2.so.2": ("libgles2", "libglvnd-gles"), "libSM.so.6": ("libsm6", "libSM")},
    **{"libXext.so.6": ("libxext6", "libXext"), "libXrender.so.1": ("libxrender1", "libXrender")},
    **{"libX11.so.6": ("libx11-6", "libX11"), "libgomp.so.1": ("libgomp1", "libgomp")},
    **{"libstdc++.so.6": ("libstdc++6", "libstdc++"), "libportaudio.so.2": ("libportaudio2", "portaudio")},
}
#: Error messages of libraries that were built for a different numpy than the installed one.
_OTHER_NUMPY = re.compile(
    r"numpy\S* failed to import|_ARRAY_API|numpy\.dtype size changed|compiled using NumPy|against (ABI|API) version"
)
#: Error messages of the loader when there is too little memory for a library.
_NO_ROOM = re.compile(r"failed to map segment|cannot allocate memory", re.IGNORECASE)
#: Error message of the loader when a system library is not installed.
_LACKING = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")
#: Maximum number of characters quoted from a library's error message: some print a page.
_MOST_SAID = 300
#: Largest accepted landmark error on the drawn face, as a fraction of the distance between its eyes.
_NEAR = 0.15


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: name of the check.
        status: ``ok``, ``warn`` (something will not work) or ``fail``.
        found: what was found, in words.
        fix: what to do; "" if nothing is wrong.
    """

    check: str
    status: str
    found: str
    fix: str = ""


def unloadable(problem: BaseException, library: str | None = None) -> Finding | None:
    """The finding for a library that cannot be loaded, whatever exception it raises.

    Args:
        problem: the exception, raised in this process or in a worker's.
        library: the library's import name if known; otherwise it is determined from where `problem` was raised.

    Returns:
        None if `problem` is something else: a bug in fercli, or an error of a library that is loaded.
    """
    if isinstance(problem, MemoryError):
        return None
    frames, said = _where(problem), _said(problem)
    missing = problem.name if isinstance(problem, ModuleNotFoundError) else None
    if missing is not None and missing.split(".")[0] in sys.stdlib_module_names:
        fix = "create an environment with another Python, 3.10 or newer"
        return Finding("python", FAIL, f"lacks its own module {missing}: it was built without it", fix)
    if library is None:
        loaded = [_library(file) for file, function in frames if function == "<module>"]
        # Of the libraries being loaded after fercli's own innermost module, the innermost is at fault.
        ours = max((i for i, name in enumerate(loaded) if name == "fercli"), default=-1)
        loaded = [name for name in loaded[ours + 1 :] if name is not None and name not in sys.stdlib_module_names]
        if missing is not None:
            library = missing.split(".")[0]
        elif loaded:
            library = loaded[-1]
        elif isinstance(problem, ImportError) and problem.name:
            library = problem.name.split(".")[0]
    if library is None or library == "fercli":
        return None
    lacking = _LACKING.search(said)
    if _NO_ROOM.search(said):
        fix = "there is too little memory; free some, or use fewer workers"
    elif lacking is not None and lacking[1] in _SYSTEM:
        # OpenCV needs both, and the loader names only the first that is missing.
        needed = ("libGL.so.1", "libglib-2.0.so.0") if library == "cv2" else (lacking[1],)
        debian, fedora = zip(*(_SYSTEM[name] for name in dict.fromkeys((*needed, lacking[1]))), strict=True)
        fix = f"apt install {' '.join(dict.fromkeys(debian))}, or: dnf install {' '.join(dict.fromkeys(fedora))}"
    elif _OTHER_NUMPY.search(said):
        pins = _requirement("mediapipe") is not None
        fix = f"pip install --force-reinstall {_distribution(library)}" + (" 'numpy<2'" if pins else "")
    else:
        again = "" if missing is not None else "--force-reinstall "
        fix = _INSTALL.get(library, f"pip install {again}{_distribution(library)}")
    return Finding("opencv" if library == "cv2" else library, FAIL, f"cannot be loaded ({said})", fix)


def _where(problem: BaseException) -> list[tuple[str, str]]:
    """(file, function) of the calls that led to an error, including a worker's, which arrive as text."""
    frames = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in traceback.walk_tb(problem.__traceback__)]
    return frames + re.findall(r'File "(.+)", line \d+, in (\S+)', _remote(problem))


def _remote(problem: BaseException) -> str:
    cause = problem.__cause__
    return str(cause) if type(cause).__name__ in ("_RemoteTraceback", "WorkerTrace") else ""


def _said(problem: BaseException) -> str:
    """The library's error message on one line; the innermost one if it repeats another's."""
    there = re.findall(r"^[\w.]+: (.+)$", _remote(problem), re.MULTILINE)
    text = there[-1] if there else str(problem).partition("Original error was: ")[2] or str(problem)
    text = " ".join(text.split()) or type(problem).__name__
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]} ..."


def _library(file: str) -> str | None:
    """The top-level import name of a source file; None if it is not on Python's path."""
    folders = [os.path.join(os.path.abspath(folder), "") for folder in sys.path]
    # OpenCV puts its own folder on the path while it is loaded.
    folders = [folder for folder in folders if not os.path.exists(f"{folder}__init__.py")]
    folder = max((folder for folder in folders if file.startswith(folder)), key=len, default=None)
    return None if folder is None else file[len(folder) :].split(os.sep)[0].removesuffix(".py")


def _distribution(library: str) -> str:
    """The package to install for a library: the one that fercli requires, else the installed one."""
    if library == "cv2":
        return next((name for name in OPENCV_WHEELS if _requirement(name) is not None), "opencv-python-headless")
    return metadata.packages_distributions().get(library, [library])[0]


def _requirement(package: str) -> Requirement | None:
    """fercli's declared requirement of a package on this system; None if there is none."""
    return next((requirement for requirement in _needed() if requirement.name == package), None)


def _needed() -> list[Requirement]:
    """fercli's declared requirements on this system; none if fercli is not installed."""
    from packaging.requirements import Requirement

    try:
        declared = map(Requirement, metadata.requires("fercli") or [])
    except metadata.PackageNotFoundError:
        return []
    return [need for need in declared if need.marker is None or need.marker.evaluate({"extra": ""})]


def python() -> Iterator[Finding]:
    """Whether Python is new enough."""
    fit = sys.version_info[:2] >= (3, 10)
    fix = "" if fit else "create an environment with Python 3.10 or newer"
    yield Finding("python", OK if fit else FAIL, f"{platform.python_version()} in {sys.prefix}", fix)


def packages() -> Iterator[Finding]:
    """fercli's declared requirements, except those with their own check."""
    declared = _needed()
    if not declared:
        yield Finding("packages", WARN, "fercli is not installed, only importable", "run: pip install fercli")
        return
    own = ("torch", "mediapipe", "av", *OPENCV_WHEELS)
    needed = [requirement for requirement in declared if requirement.name not in own]
    unfit = []
    for requirement in needed:
        version = installed_version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"'{requirement.name}{requirement.specifier}'")
    if unfit:
        yield Finding("packages", FAIL, f"missing or too old: {', '.join(unfit)}", f"pip install {' '.join(unfit)}")
    else:
        yield Finding("packages", OK, f"all {len(needed)} required packages")


def torch() -> Iterator[Finding]:
    """torch can be loaded and multiplies correctly."""
    try:
        import torch
    except Exception as problem:  # a library may fail in any way while it is loaded
        yield unloadable(problem, "torch")
        return
    ones = torch.ones(8, 8)
    right = bool((ones @ ones == 8).all())
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    yield Finding("torch", OK if right else FAIL, found, "" if right else "its results are wrong; reinstall it")


def cuda(spec: Spec) -> Iterator[Finding]:
    """Whether the requested device works; if there is no CUDA device, why."""
    try:
        import torch
    except Exception:
        return  # reported by `torch`
    missing = no_cuda()
    if missing is not None:
        wanted = spec.engine.device == "cuda"
        amiss = wanted or missing.card
        status = FAIL if wanted else WARN if amiss else OK
        found = f"none: {missing.found}" + ("" if amiss else "; training runs on the CPU")
        yield Finding("cuda", status, found, missing.fix if amiss else "")
    if torch.cuda.is_available():
        yield from _devices()


def _devices() -> Iterator[Finding]:
    """A matrix product on each device, in float32 and in bfloat16."""
    import torch

    for number in range(torch.cuda.device_count()):
        check, name = f"cuda:{number}", torch.cuda.get_device_name(number)
        try:
            ones = torch.ones(64, 64, device=check)
            right = bool((ones @ ones == 64).all())
            free, total = torch.cuda.mem_get_info(number)
            found = f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
            yield Finding(check, OK if right else FAIL, found, "" if right else "its results are wrong; use another")
            bf16 = torch.cuda.get_device_capability(number) >= (8, 0)
            if bf16:
                half = ones.bfloat16()
                bf16 = bool((half @ half == 64).all())
            found = "supported: engine.precision auto is bf16-mixed" if bf16 else "not supported: auto is 32-true"
            yield Finding(f"{check} bf16", OK, found)
        except RuntimeError as problem:
            text = str(problem).strip().splitlines()[0]
            fix = "free its memory (nvidia-smi)" if "memory" in text else (
                f"this torch is built for {', '.join(torch.cuda.get_arch_list())}; install another, or another driver"
            )  # fmt: skip
            yield Finding(check, FAIL, f"{name}: {text}", fix)


def face_networks() -> Iterator[Finding]:
    """The networks that find faces: present, or to be downloaded at first use."""
    from fercli.errors import FercliError
    from fercli.faces import network_files

    try:
        place = network_files.where()
    except FercliError as problem:
        yield Finding("face networks", FAIL, problem.what, problem.fix)
        return
    if place is not None:
        yield Finding("face networks", OK, f"of {network_files.RELEASE}, in {place}")
    elif network_files.pip_command() is None:
        found = "missing, and pip, which downloads them, is not available"
        yield Finding("face networks", FAIL, found, network_files.BY_HAND)
    else:
        found = "missing: the first prepare or predict downloads them with pip (36 MB)"
        fix = f"nothing to do if pip can reach an index; otherwise {network_files.BY_HAND}"
        yield Finding("face networks", WARN, found, fix)


def opencv() -> Iterator[Finding]:
    """OpenCV can be loaded, and only one of its wheels is installed."""
    wheels = [name for name in OPENCV_WHEELS if installed_version(name)]
    try:
        import cv2
    except Exception as problem:
        yield unloadable(problem, "cv2")
        return
    found = f"{cv2.__version__} of {', '.join(wheels) or 'no wheel'}"
    if len(wheels) > 1:
        again = f"pip uninstall -y {' '.join(wheels)} && pip install {_distribution('cv2')}"
        yield Finding("opencv", WARN, f"{found}: they overwrite each other's files", again)
    elif int(cv2.__version__.partition(".")[0]) > 4:
        again = f"pip install '{_distribution('cv2')}<5'"
        yield Finding("opencv", WARN, f"{found}: it cuts faces differently from OpenCV 4", again)
    else:
        yield Finding("opencv", OK, found)


def pyav() -> Iterator[Finding]:
    """FFmpeg's libraries can be loaded and have the usual video decoders and the encoder for annotated videos."""
    version, fix = installed_version("av"), "pip install --force-reinstall 'av>=17'"
    try:
        import av
    except (ImportError, OSError) as problem:
        text = f"cannot be loaded ({' '.join(str(problem).split())}): predict cannot read or write videos"
        yield Finding("pyav", FAIL, text, fix)
        return
    missing = [codec for codec in ("h264", "hevc", "vp9", "av1", "mpeg4") if codec not in av.codecs_available]
    if version is None or int(version.partition(".")[0]) < 17:
        yield Finding("pyav", FAIL, f"{version} is too old", fix)
    elif missing:
        yield Finding("pyav", WARN, f"{version} without codecs: {', '.join(missing)}", fix)
    else:
        yield Finding("pyav", OK, f"{version}, {len(av.codecs_available)} codecs")


def face() -> Iterator[Finding]:
    """The face networks find a drawn face."""
    import numpy as np

    from fercli.faces import network_files
    from fercli.faces.landmarker import Landmarker
    from fercli.synthetic.render import STUDIO, render

    if network_files.where() is None:  # already reported, and doctor downloads nothing
        return
    face = render(STUDIO, 0, 3, 0)
    found = Landmarker().find(face.image)
    fix = f"pip install --force-reinstall ai-edge-litert {_distribution('cv2')}"
    if found is None:
        yield Finding("face", FAIL, "the drawn face is not found", fix)
        return
    between_eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    error = float(np.linalg.norm(found.points5 - face.landmarks, axis=1).mean() / between_eyes)
    text = f"the drawn face is found; landmark error {error:.1%} of the distance between the eyes"
    yield Finding("face", OK if error < _NEAR else FAIL, text, "" if error < _NEAR else fix)


def onnx() -> Iterator[Finding]:
    """The packages for ONNX export, an optional extra."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if installed_version(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed: needed only for fercli export --format onnx"
        yield Finding("onnx", OK, f"{text} (pip install 'fercli[onnx]')")
    else:
        yield Finding("onnx", OK, f"onnx {installed_version('onnx')}, onnxruntime {installed_version('onnxruntime')}")
