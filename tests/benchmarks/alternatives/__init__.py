"""What would one use instead of invreg? In an environment of its own: ``make bench-alternatives``.

escnn and tmeasures need an older numpy than this project does. ``constraints.txt`` lists all that they import here, and
installs with ``--no-deps``. escnn imports lie-learn, which imports requests, but uses nothing of them for rotations of
the plane; it does not import py3nj, pymanopt and autograd.
"""
