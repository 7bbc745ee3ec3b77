"""Where a posterior is and how wide, found before the first step."""

from ppl_vi.starts.exploring import find_modes
from ppl_vi.starts.guide_start import GuideStart
from ppl_vi.starts.locating import fit_normals, locate
from ppl_vi.starts.log_joint import WholeLogJoint
from ppl_vi.starts.mode_search import find_mode
from ppl_vi.starts.modes import Mode, pooled, shares
from ppl_vi.starts.prior import drawn, median, toward
from ppl_vi.starts.whitening import Whitening

__all__ = [
    "GuideStart",
    "Mode",
    "Whitening",
    "WholeLogJoint",
    "drawn",
    "find_mode",
    "find_modes",
    "fit_normals",
    "locate",
    "median",
    "pooled",
    "shares",
    "toward",
]
