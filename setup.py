"""Packaging; what tools need to know stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ModuleNotFoundError:  # a build in isolation: without the compiled operators everything works, on CPUs slower
    EXTENSION = {}
else:
    EXTENSION = {
        "ext_modules": [
            CppExtension(
                "moe_nmt.moe._kernels",
                ["moe_nmt/moe/csrc/kernels.cpp"],
                extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
                extra_link_args=["-fopenmp"],
                optional=True,
            )
        ],
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True, use_ninja=False)},
    }

ROOT = Path(__file__).parent
EXTRAS = {
    "fastbpe": ["fastBPE==0.1.0", "subword-nmt>=0.3.8,<0.4"],
    "langid": ["py3langid>=0.4,<0.5"],
    "download": ["mtdata>=0.5,<0.6", "opustools>=1.9,<2"],
}
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
        "torch>=2.13,<2.14",
        "fairseq-fixed==0.12.3.1",
        "sentencepiece>=0.2,<0.3",
        "sacrebleu>=2.6,<3",
        "tensorboardX>=2.6,<3",
        "tensorboard>=2.21,<3",
        "Babel>=2.18,<2.19",
        "matplotlib>=3.11,<4",
        "numpy>=2.4,<3",
        "polars>=2.1,<3",
        "duckdb>=2,<3",
        "langcodes>=3.5,<4",
        "PyYAML>=6,<7",
        "lxml>=6,<7",
        "safetensors>=0.8,<1",
        'backports.zstd>=1.8,<2; python_version < "3.14"',
        "tqdm>=4.66,<5",
        "fonttools>=4.60,<5",
    ],
    extras_require={
        **EXTRAS,
        "dev": ["pytest>=9,<10", "ruff==0.17.6", "mypy>=2.4,<3", *EXTRAS["fastbpe"], *EXTRAS["langid"]],
    },
    **EXTENSION,
    entry_points={"console_scripts": ["moe-nmt=moe_nmt.__main__:main"]},
)
