"""The site of all evidence: a table of the works held, a page per paper, a page per slot. Plain files, no server."""

from __future__ import annotations

from pathlib import Path

from partita.lab.catalogue import evidence_folder
from partita.lab.site.folder import replace
from partita.lab.site.library import Library, gather
from partita.lab.site.listing import listing
from partita.lab.site.slot import slot_page
from partita.lab.site.work import work_page


def pages(library: Library, home: str | None = None) -> dict[str, str]:
    """Every page by its path in the site: index.html, papers/KEY.html, slots/SLOT.html."""
    out = {"index.html": listing(library, home)}
    out |= {f"papers/{key}.html": work_page(work, library, home) for key, work in library.works.items()}
    out |= {f"slots/{slot}.html": slot_page(slot, library, home) for slot in library.slots}
    return out


def build(out: Path, evidence: Path | None = None, home: str | None = None) -> int:
    """Write the site to the folder `out` and return its number of pages.

    Reads the evidence in the folder `evidence` (None: where `partita show` reads it). `home` is a link, as seen from
    `out`, to what the site is part of. The same code and evidence give the same bytes. UserError, with nothing
    written, where a file of evidence is malformed or `out` holds anything but a former site.
    """
    found = pages(gather(evidence_folder() if evidence is None else evidence), home)
    replace(out, found)
    return len(found)


def write_site(out: Path) -> str:
    """Write the site to `out` and say so in a line."""
    count = build(out)
    return f"wrote {count} pages; open {out / 'index.html'}"
