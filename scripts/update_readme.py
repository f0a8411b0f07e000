"""Write the table of methods into the README: python scripts/update_readme.py"""

import re
from pathlib import Path

from moe_nmt.methods import methods_table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- methods table: begin -->", "<!-- methods table: end -->"

text = README.read_text(encoding="utf-8")
pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
README.write_text(pattern.sub(lambda _: f"{BEGIN}\n{methods_table()}\n{END}", text), encoding="utf-8")
