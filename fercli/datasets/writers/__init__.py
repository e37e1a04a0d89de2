"""Write procedural faces in real datasets' own layouts, so that a demo or a test goes through the true readers.

Each writer fills a sibling folder ``NAME.partial`` and renames it to ``NAME`` when all is there: a folder that exists
is whole, and what a killed write left is swept away by the next. In every root lies `STAND_IN_MARKER`, which says in a
sentence that these are no photographs. Faces may be any iterable: they are written as they come. Where a dataset has
labels outside the seven, faces for them are given apart, their own label unread; sequences come from
`fercli.faces.synthetic.sequence`.
"""

from __future__ import annotations

from fercli.datasets.writers.afe import write_afe
from fercli.datasets.writers.affectnet import write_affectnet_csv, write_affectnet_npy
from fercli.datasets.writers.ck_plus import CK_PLUS_SUBJECTS, write_ck_plus, write_ck_plus_48
from fercli.datasets.writers.expw import write_expw
from fercli.datasets.writers.fer2013 import write_fer2013, write_fer2013_folders, write_ferplus
from fercli.datasets.writers.jaffe import JAFFE_SUBJECTS, write_jaffe
from fercli.datasets.writers.lists import write_class_folders, write_csv
from fercli.datasets.writers.mmi import write_mmi, write_mmi_list
from fercli.datasets.writers.oulu_casia import write_oulu_casia
from fercli.datasets.writers.raf_db import write_raf_db
from fercli.datasets.writers.sfew import write_sfew

__all__ = [
    "CK_PLUS_SUBJECTS",
    "JAFFE_SUBJECTS",
    "write_afe",
    "write_affectnet_csv",
    "write_affectnet_npy",
    "write_ck_plus",
    "write_ck_plus_48",
    "write_class_folders",
    "write_csv",
    "write_expw",
    "write_fer2013",
    "write_fer2013_folders",
    "write_ferplus",
    "write_jaffe",
    "write_mmi",
    "write_mmi_list",
    "write_oulu_casia",
    "write_raf_db",
    "write_sfew",
]
