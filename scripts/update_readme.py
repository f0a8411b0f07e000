"""Write the generated tables into the README: python scripts/update_readme.py"""

import re
from pathlib import Path

from moe_nmt.evaluation.scalars import scalars_table
from moe_nmt.methods import methods_table

README = Path(__file__).parents[1] / "README.md"
TABLES = {"methods": methods_table, "scalars": scalars_table}

text = README.read_text(encoding="utf-8")
for name, table in TABLES.items():
    begin, end = f"<!-- {name} table: begin -->", f"<!-- {name} table: end -->"
    content = f"{begin}\n{table()}\n{end}"
    text = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _, content=content: content, text, flags=re.DOTALL)
README.write_text(text, encoding="utf-8")
