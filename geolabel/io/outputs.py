"""The name of `geolabel.outputs` among what reads and writes files, for programs that import it from here."""

from geolabel.outputs import check_target, replacing, saving

__all__ = ["check_target", "replacing", "saving"]
