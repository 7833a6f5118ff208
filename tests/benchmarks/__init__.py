"""How much more than the bare minimum of work does invreg do? Ratios within one run; run ``make bench``."""
