"""Builds redrel-vlmeval: the package, and beside it the hook module with its ``.pth`` and ``.start``."""

import base64
import hashlib
import os
import re
import shutil
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).parent
HOOK = "_redrel_vlmeval_hook"
ROOT_FILES = ["redrel_vlmeval.pth", "redrel_vlmeval.start"]
WEB = ["sheets/offline", "sheets/page", "explain/draw"]  # with templates, styles and scripts


class BuildWithHook(build_py):
    """Copies the ``.pth`` and ``.start`` to the wheel's root; setuptools has no option for such files."""

    def run(self):
        super().run()
        for source, target in zip(ROOT_FILES, self._root_outputs(), strict=True):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / source, target)

    def _root_outputs(self):
        return [os.path.join(self.build_lib, name) for name in ROOT_FILES]

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + self._root_outputs()

    def get_source_files(self):
        return super().get_source_files() + ROOT_FILES


class EditableWithHook(editable_wheel):
    """Adds the hook's files to an editable wheel, which otherwise holds only a pointer to this folder.

    The hook module is copied too: with the checkout moved away, an interpreter still starts without a complaint.
    """

    def run(self):
        super().run()
        wheel = max(Path(self.dist_dir).glob("redrel_vlmeval-*.whl"), key=os.path.getmtime)
        add_to_wheel(wheel, [HERE / name for name in [f"{HOOK}.py", *ROOT_FILES]])


def add_to_wheel(wheel, files):
    """Rewrite ``wheel`` with ``files`` at its root, each with its line in RECORD, so that uninstalling removes them."""
    draft = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as new:
        lines = []
        for file in files:
            data = file.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{file.name},sha256={digest},{len(data)}\n")
            new.writestr(file.name, data)
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data = "".join(lines).encode() + data
            new.writestr(entry, data)
    os.replace(draft, wheel)


def version():
    """Read, not imported: the package's dependencies need not be there yet."""
    text = (HERE / "redrel_vlmeval" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)[1]


def readme():
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="redrel-vlmeval",
    version=version(),
    description="Drop image tokens after chosen decoder blocks of vision-language models, in VLMEvalKit's own runner",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="redrel-vlmeval authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["redrel_vlmeval", "redrel_vlmeval.*"]),
    py_modules=[HOOK],
    package_data={
        "redrel_vlmeval": [
            "py.typed",
            "**/*.pyi",
            "*.csv",
            "results/*.csv",
            "table/*.csv",
            "models/tiny/checkpoint/*",
            "models/smol/parts/*",
            *(f"{folder}/*.{kind}" for folder in WEB for kind in ("j2", "css", "js")),
        ]
    },
    include_package_data=False,
    install_requires=[
        "torch",
        "transformers>=4.48,!=5.0.*",
        "huggingface-hub",
        "safetensors",
        "tokenizers",
        "numpy",
        "pillow",
        "pandas",
        "scipy",
        "openpyxl",
        "python-calamine",
        "tabulate",
        "filelock>=3.30",  # with lock_descriptor
        "lazy-loader>=0.4",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "pyarrow",
        "typer",
        "rich",
    ],
    extras_require={
        "ms": ["ms-vlmeval"],
        # lmms-eval holds protobuf below 7, which newer sentencepiece wants for Vicuna's tokenizer
        "lmms": ["lmms-eval>=0.7.3,<0.8", "sentencepiece<0.2.2"],
        # what the remote code of Qwen-VL and Qwen-VL-Chat imports
        "qwen": ["einops", "requests", "tiktoken", "torchvision"],
        "smol": ["gguf"],  # reads the decoder that `redrel smol` fetches
        "matrix": ["nox"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            "build",
            "hypothesis",
            "ipykernel",
            "nbclient",
            "playwright",
            "protobuf",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "scikit-image",
            "sentencepiece",
            "setuptools>=70.1",
        ],
        "lint": ["mypy", "pandas-stubs", "ruff", "types-openpyxl", "types-tabulate"],
    },
    entry_points={
        "console_scripts": ["redrel = redrel_vlmeval.cli:main"],
        "lmms_eval.models": ["redrel = redrel_vlmeval.lmms.door:manifests"],
    },
    cmdclass={"build_py": BuildWithHook, "editable_wheel": EditableWithHook},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
