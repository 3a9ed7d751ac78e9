"""Pages, figures and tables of what has been measured, for people, papers and model cards. No torch."""

from robustkt.report.curves import certified_figure
from robustkt.report.figure import PICTURES, Figure
from robustkt.report.lineages import decay
from robustkt.report.tradeoffs import soup_curve

__all__ = ["PICTURES", "Figure", "certified_figure", "decay", "soup_curve"]
