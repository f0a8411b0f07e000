"""The formats in which corpora come; one file, one format."""

from data_prep.formats.format import FORMATS, Format

__all__ = ["FORMATS", "Format"]
