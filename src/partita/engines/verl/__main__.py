"""Print which parts run in verl, and how."""

from partita.engines.verl.fits import fits

for fit in fits():
    print(f"{fit.slot:10} {fit.name:20} {fit.way:10} {fit.why}")
