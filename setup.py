"""Packaging; what tools need to know stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "moe_nmt/__init__.py").read_text())[1]

setup(
    name="moe_nmt",
    version=VERSION,
    description="Sparse mixture-of-experts models for multilingual machine translation, as a plugin for fairseq",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["moe_nmt", "moe_nmt.*"]),
    package_data={"moe_nmt": ["py.typed"]},
    install_requires=[
        "torch>=2.10,<2.15",
        "fairseq-fixed==0.12.3.1",
        "sentencepiece>=0.2,<0.3",
        "sacrebleu>=2.4,<3",
        "tensorboardX>=2.6,<3",
        "tensorboard>=2.15,<3",
        "Babel>=2.18,<3",
        "matplotlib>=3.8,<4",
        "numpy>=1.26,<3",
    ],
    extras_require={
        "fastbpe": ["fastBPE==0.1.0"],
        "dev": ["pytest>=8", "pytest-xdist>=3", "ruff>=0.9", "mypy>=1.13"],
    },
    entry_points={"console_scripts": ["moe-nmt=moe_nmt.__main__:main"]},
)
